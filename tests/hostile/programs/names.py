"""File names that mean something elsewhere, and files with rights that they must not keep."""
import errno, json, os

os.chdir('/output')
names = [
    'C:\\Windows', '..\\..\\x', '\\etc\\passwd', '~root', '$(id)', '`id`', '-rf', '%2e%2e%2f', 'a:b',
    '\u202etxt.exe', 'e\u0301', 'CON', 'nul.', ' ', 'x' * 255, '..x', '...',
]
for name in names:
    open(name, 'w').close()
answers = {}
for name in ('..', '.', '../x', '/etc/x', 'no/such', 'x' * 256, 'x\0y', ''):
    try:
        open(name, 'w').close()
        answers[name[:9]] = 'made'
    except OSError as error:
        answers[name[:9]] = errno.errorcode[error.errno]
    except ValueError:
        answers[name[:9]] = 'refused by the interpreter'
open('rights', 'w').write('#!/bin/sh\nid\n')
os.chmod('rights', 0o6777)
os.mkdir('sticky')
open('sticky/inside', 'w').close()
os.chmod('sticky', 0o7555)
for attribute in ('user.note', 'security.capability', 'trusted.note', 'system.posix_acl_access'):
    try:
        os.setxattr('rights', attribute, b'\1')
        answers[attribute] = 'set'
    except OSError as error:
        answers[attribute] = errno.errorcode[error.errno]
print(json.dumps(answers))
