import sys

names = sorted(sys.modules)
seen = {
    "globals": {name: repr(type(value)) for name, value in globals().items() if name not in ("sys", "names")},
    "globals in order": list(globals()),
    "__file__": __file__,
    "__name__": __name__,
    "__spec__": repr(__spec__),
    "__package__": repr(__package__),
    "__cached__": repr(__cached__),
    "__loader__": [type(__loader__).__module__, type(__loader__).__name__, __loader__.path, __loader__.name],
    "__builtins__": repr(__builtins__),
    "__doc__": repr(__doc__),
    "__annotations__": repr(__annotations__),
    "sys.modules": names,
    "main module": [sys.modules[name] is sys.modules["__main__"] for name in ("__mp_main__",) if name in sys.modules],
    "modules that are other than their names": sorted(n for n, m in sys.modules.items() if getattr(m, "__name__", n) != n),
}

import _thread
import atexit
import builtins
import codecs
import copyreg
import ctypes
import faulthandler
import gc
import json
import locale
import os
import posix
import resource
import signal
import site
import subprocess
import tempfile
import threading
import time
import tracemalloc
import warnings


def see(name, look):
    try:
        seen[name] = look()
    except Exception as error:
        seen[name] = repr(error)


def read(path):
    with open(path) as file:
        return file.read()


def calm(text):
    """Without the numbers that the kernel gives to pipes and the like."""
    head, bracket, tail = text.partition(":[")
    return head + ":[]" if bracket and tail.endswith("]") else text


def where(function):
    code = getattr(function, "__code__", None)
    return [getattr(function, "__module__", None), getattr(function, "__qualname__", repr(type(function))),
            code.co_filename if code else None]


def tree(path):
    entries = []
    for directory, directories, files in os.walk(path):
        for name in [".", *directories, *files]:
            stat = os.lstat(os.path.join(directory, name))
            entries.append([directory, name, oct(stat.st_mode), stat.st_uid, stat.st_gid, stat.st_nlink,
                            None if os.path.isdir(os.path.join(directory, name)) else stat.st_size])
    return sorted(entries, key=str)


# The interpreter's own.
for name in ("argv", "orig_argv", "path", "executable", "_base_executable", "prefix", "base_prefix", "exec_prefix",
             "base_exec_prefix", "platlibdir", "platstdlibdir", "pycache_prefix", "warnoptions", "_xoptions", "_git",
             "dont_write_bytecode", "byteorder", "version", "hexversion", "api_version", "platform", "abiflags",
             "stdlib_module_names", "_framework", "maxsize", "float_repr_style"):
    if hasattr(sys, name):
        value = getattr(sys, name)
        seen["sys." + name] = sorted(value) if isinstance(value, frozenset) else value
for name in ("getrecursionlimit", "getswitchinterval", "getfilesystemencoding", "getfilesystemencodeerrors",
             "getdefaultencoding", "gettrace", "getprofile", "is_finalizing", "get_coroutine_origin_tracking_depth",
             "get_int_max_str_digits", "getdlopenflags"):
    see(f"sys.{name}()", getattr(sys, name))
seen["sys.flags"] = repr(sys.flags)
seen["sys.flags.safe_path"] = sys.flags.safe_path
seen["sys.implementation"] = repr(sys.implementation)
seen["sys.thread_info"] = repr(sys.thread_info)
seen["sys.hash_info"] = repr(sys.hash_info)
seen["names of sys"] = sorted(dir(sys))
seen["names of builtins"] = sorted(dir(builtins))
seen["names of posix"] = sorted(dir(posix))
seen["names of os"] = sorted(dir(os))
seen["names of site"] = sorted(dir(site))
seen["sys.meta_path"] = [repr(finder).partition(" object at ")[0] for finder in sys.meta_path]
seen["sys.path_hooks"] = [where(hook) for hook in sys.path_hooks]
seen["sys.path_importer_cache"] = sorted(sys.path_importer_cache)
seen["hooks"] = [repr(type(getattr(sys, name))) + str(getattr(sys, name) is getattr(sys, f"__{name}__"))
                 for name in ("excepthook", "displayhook", "unraisablehook", "breakpointhook")]
seen["sys.last"] = [hasattr(sys, name) for name in ("last_type", "last_value", "last_traceback", "ps1", "tracebacklimit")]
seen["sys.exc_info"] = repr(sys.exc_info())
seen["context of an exception"] = repr(sys.exc_info()[1])
seen["audit and trace of threads"] = [repr(threading._trace_hook), repr(threading._profile_hook)]
seen["site functions"] = [where(getattr(site, name)) for name in sorted(dir(site)) if callable(getattr(site, name))]
seen["site"] = [site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE, site.PREFIXES]
seen["frames"] = [[f.f_code.co_filename, f.f_code.co_name] for f in [sys._getframe()]] + [repr(sys._getframe().f_back)]
seen["frames of all threads"] = len(sys._current_frames())
seen["hash of numbers"] = [hash(0), hash(-1), hash(1 << 70), hash(1.5), hash((1, 2)), hash(None) == hash(None)]
seen["interned"] = [sys.intern("abc") is sys.intern("abc"), id(256) == id(int("256"))]
seen["builtins"] = {name: where(value) for name, value in vars(builtins).items() if callable(value)}
seen["atexit functions"] = atexit._ncallbacks()
seen["warnings.filters"] = [repr(entry) for entry in warnings.filters]
seen["warnings"] = [where(warnings.showwarning), warnings.defaultaction, repr(warnings.onceregistry)]
seen["copyreg"] = sorted(repr(kind) for kind in copyreg.dispatch_table)
seen["codecs"] = [codecs.lookup("utf-8").name, codecs.lookup_error("strict").__name__]
seen["gc"] = [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage]
seen["gc.frozen"] = gc.get_freeze_count()
seen["faulthandler"] = faulthandler.is_enabled()
seen["tracemalloc"] = tracemalloc.is_tracing()
seen["threading"] = [repr(type(t)) + t.name for t in threading.enumerate()] + [threading.stack_size()]
main = threading.main_thread()
seen["main thread"] = [main.ident == _thread.get_ident(), main.native_id == os.getpid(), main.name, main.daemon,
                       main is threading.current_thread(), _thread._count()]
seen["asynchronous generators"] = repr(sys.get_asyncgen_hooks())
for stream in (sys.stdin, sys.stdout, sys.stderr):
    seen["stream " + stream.name] = [
        repr(type(stream)), stream.mode, stream.encoding, stream.errors, stream.line_buffering, stream.write_through,
        stream.fileno(), stream.isatty(), repr(stream.newlines), repr(type(stream.buffer)), stream.closed,
        os.get_blocking(stream.fileno()), os.get_inheritable(stream.fileno()), stream is getattr(sys, f"__{stream.name[1:-1]}__")]
seen["stdin"] = [sys.stdin.read(), os.read(0, 1).decode()]
seen["locale"] = [locale.getlocale(), locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.localeconv()]
seen["time zone"] = [time.tzname, time.timezone, time.daylight, time.localtime(0).tm_hour]
seen["tempfile"] = [tempfile.tempdir, tempfile.template, repr(tempfile._name_sequence), tempfile.gettempdir()]

# The environment, in Python, in C, in children, and as the kernel tells it.
seen["os.environ"] = list(os.environ.items())
seen["os.environb"] = [[k.hex(), v.hex()] for k, v in os.environb.items()]
seen["posix.environ"] = [[k.hex(), v.hex()] for k, v in posix.environ.items()]
seen["os.environ is"] = [repr(type(os.environ)), repr(type(os.environ._data)), os.environ._data is os.environb._data,
                         where(os.environ.encodekey), where(os.environ.encodevalue)]
libc = ctypes.CDLL(None, use_errno=True)
pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
variables = []
while pointer[len(variables)] is not None:
    variables.append(pointer[len(variables)].hex())
seen["environ of C"] = variables
seen["/proc/self/environ"] = read("/proc/self/environ")
child = "import os, sys; print([list(os.environb.items()), sys.argv, sorted(os.listdir('/proc/self/fd')), os.getpgid(0) == os.getppid()])"
seen["a child"] = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout
seen["a child of the shell"] = subprocess.run("ulimit -a; umask; id; tty; export", shell=True, capture_output=True, text=True).stdout

# The process.
status = {line.split(":")[0]: line.split(":", 1)[1].split() for line in read("/proc/self/status").splitlines()}
for name in [name for name in status if name.startswith(("Vm", "Rss", "nonvoluntary", "voluntary", "Hugetlb"))]:
    del status[name]
seen["/proc/self/status"] = status
seen["names in /proc/self/status"] = sorted(status)
seen["/proc/self/cmdline"] = read("/proc/self/cmdline")
seen["/proc/self/comm"] = read("/proc/self/comm")
seen["/proc/self/exe"] = os.readlink("/proc/self/exe")
seen["/proc/self/cwd"] = os.readlink("/proc/self/cwd")
see("/proc/self/root", lambda: os.readlink("/proc/self/root"))
see("/proc/self/mounts", lambda: read("/proc/self/mounts"))
see("/proc/self/mountinfo", lambda: read("/proc/self/mountinfo"))
see("/proc/self/limits", lambda: read("/proc/self/limits"))
see("/proc/self/cgroup", lambda: read("/proc/self/cgroup"))
see("/proc/self/oom_score_adj", lambda: read("/proc/self/oom_score_adj"))
see("/proc/self/uid_map", lambda: [read(f"/proc/self/{n}") for n in ("uid_map", "gid_map")])
see("namespaces", lambda: sorted(os.listdir("/proc/self/ns")))
see("threads in /proc", lambda: len(os.listdir("/proc/self/task")))
see("processes", lambda: sorted(n for n in os.listdir("/proc") if n.isdigit()))
see("init", lambda: [read("/proc/1/comm"), read("/proc/1/cmdline")])
see("mapped files", lambda: sorted({line.split()[5] for line in read("/proc/self/maps").splitlines() if len(line.split()) > 5}))
stat = read("/proc/self/stat").rpartition(")")[2].split()
# State, parent, group, session, terminal, its group, flags; nice, threads.
seen["/proc/self/stat"] = [stat[0:7], stat[15:18]]
descriptors = {}
for name in os.listdir("/proc/self/fd"):
    try:
        descriptors[name] = [calm(os.readlink(f"/proc/self/fd/{name}")), os.get_inheritable(int(name)), os.get_blocking(int(name))]
    except OSError:
        descriptors[name] = None  # the listing itself
seen["descriptors"] = descriptors
seen["next descriptor"] = os.open("/dev/null", os.O_RDONLY)
seen["descriptor flags"] = [[oct(__import__("fcntl").fcntl(fd, op)) for op in (1, 3)] for fd in (0, 1, 2)]
seen["umask"] = [os.umask(0o22), os.umask(0o22)]
seen["cwd"] = os.getcwd()
seen["ids"] = [os.getresuid(), os.getresgid(), os.getgroups(), os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0)]
seen["nice"] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)), os.cpu_count()]
# No new privileges, dumpable, keep capabilities, death signal, securebits, seccomp; the bounding and ambient sets.
seen["prctl"] = [libc.prctl(n, 0, 0, 0, 0) for n in (39, 3, 7, 27, 21)] + [
    [libc.prctl(23, n, 0, 0, 0) for n in range(41)], [libc.prctl(47, 1, n, 0, 0) for n in range(41)]]
seen["personality"] = libc.personality(0xFFFFFFFF)
seen["limits"] = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
seen["signals"] = [[n, str(signal.getsignal(n))] for n in sorted(signal.valid_signals())]
seen["blocked signals"] = [list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), list(signal.sigpending())]


class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]


def disposition(number):
    action = Action()
    if libc.sigaction(number, None, ctypes.byref(action)) != 0:
        return "none"
    return [{None: "default", 1: "ignored"}.get(action.handler, "handled"), hex(action.flags), list(action.mask)[:1]]


seen["dispositions"] = {n: disposition(n) for n in range(1, 65)}
seen["timers"] = [signal.getitimer(n) for n in (0, 1, 2)] + [signal.alarm(0)]
seen["wakeup descriptor"] = signal.set_wakeup_fd(-1)
stack = (ctypes.c_uint64 * 3)()
seen["alternate stack"] = [libc.sigaltstack(None, stack), stack[1] >> 32, stack[2]]
see("children", lambda: os.waitpid(-1, os.WNOHANG))

# The machine.
seen["uname"] = os.uname()
see("cpuinfo", lambda: sorted({line for line in read("/proc/cpuinfo").splitlines() if not line.startswith("cpu MHz")}))
see("MemTotal", lambda: [line for line in read("/proc/meminfo").splitlines() if line.startswith(("MemTotal", "SwapTotal"))])
see("version", lambda: read("/proc/version"))
see("kernel settings", lambda: {path: read(path) for path in ("/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/yama/ptrace_scope")})
see("interfaces", lambda: __import__("socket").if_nameindex())
for path in ("/", "/dev", "/proc", "/sys", "/var", "/home", "/etc"):
    see("listing of " + path, lambda: sorted(n for n in os.listdir(path) if not n.isdigit()))
for path in ("/code", "/input", "/output", "/tmp", "/run", "/run/tako-vm", "/dev/shm", "/app", "/var/tmp"):
    see("tree of " + path, lambda: tree(path))
see("input", lambda: [read("/input/data.json"), read("/input/more.txt")])
see("program", lambda: len(read("/code/main.py")))
see("room", lambda: {p: [os.statvfs(p).f_blocks, os.statvfs(p).f_bsize, os.statvfs(p).f_flag] for p in ("/", "/code", "/input", "/output", "/tmp", "/dev/shm")})
see("FIFO", lambda: oct(os.stat("/run/tako-vm/report").st_mode))

clocks = [time.time, time.monotonic, time.perf_counter, lambda: time.clock_gettime(time.CLOCK_BOOTTIME)]
begun = [clock() for clock in clocks]
time.sleep(0.05)
seen["clock"] = {"now": begun[0], "slept": [clock() - start for clock, start in zip(clocks, begun)]}
# More than is kept of what a program prints.
with open("/output/seen.json", "w") as file:
    json.dump(seen, file)
