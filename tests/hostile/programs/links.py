"""Leaves links of every kind in /output, to the decoy and to what is near it."""
import errno, json, os, socket

decoy = json.load(open('/input/data.json'))['decoy']


def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]


os.chdir('/output')
targets = {
    'decoy': decoy,
    'decoys': os.path.dirname(decoy),
    'result.json': decoy,
    'host': '/proc/1/root' + decoy,
    'here': '.',
    'up': '../../../../../../../..' + decoy,
    'root': '/proc/self/root',
    'descriptors': '/proc/self/fd',
    'loop': 'loop',
    'dangling': '/nowhere/at/all',
    'init': '/usr/lib/tako-vm/tako-init',
    'code': '/code/main.py',
}
for name, target in targets.items():
    os.symlink(target, name)
os.mkdir('directory')
os.symlink('..', 'directory/back')
os.mkfifo('fifo')
held = socket.socket(socket.AF_UNIX)
held.bind('socket')
open('kept', 'w').write('kept')
os.link('kept', 'kept too')
print(json.dumps({
    # Followed inside, they end inside.
    'read': attempt(open, 'decoy'),
    'hard link to the input': attempt(os.link, '/input/data.json', 'input'),
    'hard link to the image': attempt(os.link, '/etc/passwd', 'passwd'),
    'block device': attempt(os.mknod, 'block', 0o60666, os.makedev(8, 0)),
    'character device': attempt(os.mknod, 'character', 0o20666, os.makedev(1, 3)),
}))
