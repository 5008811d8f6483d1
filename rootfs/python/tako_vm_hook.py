"""Tells tako-init that the interpreter is up, which exception ended the program, and with which status
the interpreter ends; before that, holds an interpreter that has no program yet.

Loaded by `tako_vm.pth` in every interpreter of the image, it acts in one only: the program that
init started. It leaves no module, no descriptor and no replaced function behind; the exception is
the one that the interpreter itself keeps in `sys.last_value` when it prints a traceback.
"""


def install():
    import posix
    import sys

    if posix.getppid() != 1 or sys.orig_argv[1:] != ["-u", "/code/main.py"]:
        return

    import atexit

    variables, objects = {}, None
    fifo = "/run/tako-vm/report"
    flags = posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC
    # Bound now: the program may replace them before the end.
    open_, write, close, getpid = posix.open, posix.write, posix.close, posix.getpid
    main = getpid()

    def report(*fields):
        record = "\n".join(fields).replace("\0", "").encode("utf-8", "backslashreplace")
        # One write of at most PIPE_BUF bytes is atomic on a FIFO.
        descriptor = open_(fifo, flags)
        try:
            write(descriptor, record[:4095] + b"\0")
        finally:
            close(descriptor)

    stdout, stderr, excepthook = sys.stdout, sys.stderr, sys.excepthook
    # What there is before the program: callbacks at exit, and blocks of memory.
    callbacks, blocks = 1, 0
    count, allocated = atexit._ncallbacks, sys.getallocatedblocks

    def has_succeeded(variables):
        # The interpreter sets the first two for as long as the program runs, and takes them away only when
        # it has returned: not when it was left by `sys.exit`.
        returned = "__file__" not in variables and "__cached__" not in variables
        as_ever = "__spec__" in variables and "__loader__" in variables
        # Who can have taken the exception away that has ended it.
        unhandled = sys.excepthook is excepthook and count() == callbacks
        # What is flushed into other streams may fail.
        own_streams = sys.stdout is stdout and sys.stderr is stderr
        # To look through many objects takes memory, of which there may be none left.
        small = allocated() - blocks < 100_000
        if returned and as_ever and unhandled and own_streams and small:
            stdout.flush()
            stderr.flush()
            return True
        return False

    def at_exit():
        nonlocal variables
        # Ours is not to be the last reference to them.
        seen, variables = variables, {}
        try:
            # What they remember of the program would keep it from being finalised.
            for forget in getattr(sys.modules.get("typing"), "_cleanups", ()):
                forget()
        except BaseException:
            pass  # it is the program's own by now
        # A forked child inherits this handler, and must not speak for its parent.
        if getpid() != main:
            return
        exception = getattr(sys, "last_value", None)
        if exception is None:
            try:
                made = objects() if has_succeeded(seen) else ()
                # What a program freezes (`gc.freeze`) is not among them, nor are its variables then.
                if any(thing is seen for thing in made):
                    end.succeed(made)
            except BaseException:
                pass  # the interpreter ends in its own time
            return
        try:
            message = str(exception)
        except BaseException:
            message = ""  # the program's own `__str__` failed; the class is known all the same
        try:
            classes = " ".join(c.__name__ for c in type(exception).__mro__ if c is not object)
            report("exception", str(main), classes[:1000], message)
        except BaseException:
            pass  # the exit status says enough

    # The first to register is the last to run, after everything that the program registers.
    atexit.register(at_exit)
    end = load_end(sys)
    end.watch()
    # The interpreter would try to open it as a ZIP file, in vain, and then write down just this.
    sys.path_importer_cache["/code/main.py"] = None
    try:
        held = open_("/run/tako-vm/hold", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        variables, objects = settle(sys, end)
        blocks = allocated()
        report("up", str(main))  # the program is there already
        return

    def hold():
        nonlocal variables, objects, callbacks, blocks
        site.execusercustomize = last
        last()
        try:
            preload(sys)
            variables, objects = settle(sys, end)
            callbacks, blocks = count(), allocated()
            report("held", str(main))
            while (wish := wait(held)) == b"rehearse\0\0":
                rehearse(sys, end)
                report("held", str(main))
            close(held)
            if wish != b"start\0\0":
                adopt(parse(wish))
            reseed(sys.modules)
        except BaseException as error:
            # An interpreter that is not as it should be gets no program. Where there is none yet, init
            # hears why.
            report("unfit", str(main), type(error).__name__, str(error))
            sys.excepthook(type(error), error, error.__traceback__)
            posix._exit(70)

    # The last that the interpreter does before it turns to the program.
    site = sys.modules["site"]
    last = site.execusercustomize
    site.execusercustomize = hold


def load_end(sys):
    """The extension module beside init, which no program finds by its name."""
    import _imp

    name = "tako_vm_end"
    module = _imp.create_dynamic(type(sys.__spec__)(name, None, origin="/usr/lib/tako-vm/end.so"))
    sys.modules.pop(name, None)
    return module


def preload(sys):
    """Imports what the image says that its programs use."""
    import posix

    try:
        descriptor = posix.open("/usr/share/tako-vm/preload", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        names = posix.read(descriptor, 1 << 16).decode().split()
    finally:
        posix.close(descriptor)
    for name in names:
        __import__(name)
    if names:
        import gc

        gc.collect()


def settle(sys, end):
    """Takes what is there now out of the collector's sight, and lets functions be there until the end.

    To look through it at the end and to take it apart takes a millisecond without any module of the
    program's, and with numpy ten times as long as ending without.
    """
    there = "gc" in sys.modules
    import gc

    # Functions alone: what else holds others may come to hold something of the program's.
    kept = [thing for thing in gc.get_objects() if type(thing) is type(settle)]
    # A ring of its own, which nobody takes apart once it is frozen.
    kept.append(kept)
    gc.freeze()
    if not there:
        del sys.modules["gc"]
    # What a frozen dictionary holds is never collected, and the program's own variables are to be.
    old, new = sys.modules["__main__"], type(sys)("__main__")
    new.__dict__.clear()
    new.__dict__.update(old.__dict__)
    # multiprocessing has another name for it.
    for name in [name for name, module in sys.modules.items() if module is old]:
        sys.modules[name] = new
    end.settle()
    return new.__dict__, gc.get_objects


def rehearse(sys, end):
    """Does what the interpreter does with every program, with one that init has put there for it, and
    leaves nothing of it.

    The first times are slow: gVisor rewrites each place that makes a system call, and brings in each page
    of the interpreter and of its memory, when it is first reached.
    """
    import posix

    main = sys.modules["__main__"].__dict__
    before = dict(main)
    if end.rehearse():
        raise OSError("the rehearsal failed")
    main.clear()
    main.update(before)
    # Of no bytes: nobody sees them.
    for stream in sys.stdout, sys.stderr:
        print(end="", file=stream, flush=True)
    environment = dict(posix.environ)
    adopt(environment)
    parse(b"".join(name + b"=" + value + b"\0" for name, value in environment.items()) + b"\0")
    reseed(sys.modules)


def parse(text):
    return dict(entry.split(b"=", 1) for entry in text.split(b"\0") if entry)


def wait(descriptor):
    """Blocks until there is a program, and returns its environment; or one of two words, which are no
    variables: for a rehearsal, or for a program that has the environment that there is."""
    import posix

    text = b""
    while not text.endswith(b"\0\0"):
        # One read and no poll: the state that a checkpoint can be made of.
        piece = posix.read(descriptor, 4096)
        if not piece:
            raise EOFError("tako-init is gone")
        text += piece
    return text


def adopt(environment):
    """Makes this the environment, in this order, as if the interpreter had been started with it."""
    import os
    import posix

    if list(environment.items()) == list(os.environb.items()):
        return
    os.environb.clear()
    posix.environ.clear()
    for name, value in environment.items():
        os.environb[name] = value
        posix.environ[name] = value


def reseed(modules):
    """Gives what chance has given to all copies of a checkpoint to this one anew."""
    import posix

    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = posix.urandom(32)
    if "_ssl" in modules:
        # OpenSSL's generators take this up before they give anything out.
        modules["_ssl"].RAND_add(posix.urandom(32), 32.0)


install()
