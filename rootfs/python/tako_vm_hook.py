"""Tells tako-init that the interpreter is up, and which exception ended the program.

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
    report("up", str(main))


install()
