import importlib
import json
import sys

compiled = []


def watch(event, arguments):
    # What modules compile of their own making (namedtuple, for one) has no file.
    if event == "compile" and str(arguments[1]).endswith(".py"):
        compiled.append(str(arguments[1]))


sys.addaudithook(watch)
for name in open("/usr/share/tako-vm/preload").read().split():
    importlib.import_module(name)
import mpl_toolkits.mplot3d
import sklearn.cluster
import sklearn.datasets

# Valid by its hash, which is not compared with that of the source (PEP 552).
UNCHECKED = b"\1\0\0\0"


def unfit(module):
    cached = getattr(module, "__cached__", None)
    if cached is None or not getattr(module, "__file__", "").startswith("/usr/lib/python3"):
        return False
    return not cached.endswith(".pyc") or open(cached, "rb").read(8)[4:] != UNCHECKED


modules = list(sys.modules.items())
print(
    json.dumps(
        {
            "compiled": compiled,
            "without": sorted(name for name, module in modules if unfit(module)),
            "modules": len(modules),
        }
    )
)
