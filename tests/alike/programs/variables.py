"""Lists the environment variables that the sources of all imported libraries name."""

import json
import re
import sys

SUBSCRIPT = re.compile(r"(?:environ(?:\.get|\.setdefault|\.pop)?|getenv)\s*[\[(]\s*['\"]([A-Z][A-Z0-9_]+)['\"]")
MEMBER = re.compile(r"['\"]([A-Z][A-Z0-9_]+)['\"] (?:not )?in os\.environ")
names = set()
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.endswith(".py") and "/dist-packages/" in path:
        source = open(path).read()
        names.update(SUBSCRIPT.findall(source), MEMBER.findall(source))
print(json.dumps(sorted(names)))
