"""Tells tako-init that the interpreter is up, and which exception ended the program; before that, holds
an interpreter that has no program yet.

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

    def at_exit():
        exception = getattr(sys, "last_value", None)
        # A forked child inherits this handler, and must not speak for its parent.
        if exception is None or getpid() != main:
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
    try:
        held = open_("/run/tako-vm/hold", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        settle(sys)
        report("up", str(main))  # the program is there already
        return

    def hold():
        site.execusercustomize = last
        last()
        try:
            preload(sys)
            rehearse(sys, site)
            settle(sys)
            report("held", str(main))
            while not (environment := wait(held)):
                # A restored interpreter has not reached any page yet.
                rehearse(sys, site)
                report("held", str(main))
            close(held)
            adopt(environment)
            reseed(sys.modules)
        except BaseException:
            # An interpreter that is not as it should be gets no program.
            sys.excepthook(*sys.exc_info())
            posix._exit(70)
        report("up", str(main))

    # The last that the interpreter does before it turns to the program.
    site = sys.modules["site"]
    last = site.execusercustomize
    site.execusercustomize = hold


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


def settle(sys):
    """Takes what is there until the end out of the collector's sight.

    Looking through it at the end takes a millisecond without any module of the program's, and with
    numpy ten times as long as ending without.
    """
    there = "gc" in sys.modules
    import gc

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


def rehearse(sys, site):
    """Does once what the interpreter does with every program, and leaves nothing of it.

    The first time is slow: gVisor rewrites each place that makes a system call, and brings in each page
    of the interpreter and of its memory, when it is first reached.
    """
    import posix

    for hook in sys.path_hooks:
        try:
            hook("/code/main.py")
        except ImportError:
            pass
    try:
        # A fault that is found after parsing: to show the line, the interpreter opens and reads a file
        # as it does a program.
        compile("return", site.__file__, "exec")
    except SyntaxError:
        pass
    program = "def f(x):\n    return [x + 1, f'{x}', (x,), {x: x}]\nfor x in range(2):\n    f(x)\n"
    exec(compile(program, "/code/main.py", "exec"), {})
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
    """Blocks until there is a program; returns its environment. None at all asks for a rehearsal."""
    import posix

    text = b""
    while not text.endswith(b"\0\0"):
        # One read and no poll: the state that a checkpoint can be made of.
        piece = posix.read(descriptor, 4096)
        if not piece:
            raise EOFError("tako-init is gone")
        text += piece
    return parse(text)


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
