"""Runs one module of CPython's test suite as CPython's own regrtest does, and writes down how each of
its tests ended. The same program runs in a sandbox and natively.

Reads /input/data.json (`module`, `seconds`, `resources`) and appends to /output/tests.jsonl, one
object a line: `{"begun": TEST}`, `{"test": TEST, "outcome": …, "detail": …}` and, last, `{"end": …}`.
"""

import json
import os
import subprocess
import sys
import time

RECORDS = "/output/tests.jsonl"

#: Characters of a traceback that are kept: its end says what failed.
DETAIL = 2000

#: The worst that happened in a test is how it ended: subtests have outcomes of their own.
OUTCOMES = ["ok", "skipped", "expected failure", "unexpected success", "failed", "error"]


#: Debian leaves CPython's tests of sqlite3 out. PyPy's package has them, as they were in CPython 3.9.
FURTHER_TESTS = "/usr/lib/pypy3.9"


#: Tests that end or hang their whole module in gVisor, which has no UDP-Lite and keeps the port of a
#: refused connection for a while. Left out on both sides.
LEFT_OUT = ["*UDPLITE*", "*NetworkConnectionAttributesTest.testSourceAddress"]


def write(record):
    # One write: a test that forks may be killed at any time, and lines must stay whole.
    line = json.dumps(record) + "\n"
    descriptor = os.open(RECORDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def supervise(seconds):
    """Runs the tests in a process of their own, which may crash, hang or flood its output."""
    begun = time.monotonic()
    with open("/tmp/.log", "w+b") as log:
        child = subprocess.Popen(
            [sys.executable, "-u", __file__, "tests"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            status = child.wait(seconds)
            end = f"exit {status}" if status >= 0 else f"signal {-status}"
        except subprocess.TimeoutExpired:
            end = "cut off"
            os.killpg(child.pid, 9)
            child.wait()
        write({"end": end, "seconds": round(time.monotonic() - begun, 1)})
        log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
        sys.stdout.buffer.write(log.read())


def run(module, resources):
    import doctest
    import re
    import sqlite3
    import test
    import traceback
    import unittest
    from test import support
    from test.libregrtest import cmdline, runtest, setup
    from test.support import import_helper, os_helper

    main, seen = os.getpid(), {}

    def name_of(test):
        # What stands for a class or a module that could not be set up has an id like theirs.
        name = re.sub(r"0x[0-9a-f]{6,}", "0x…", test.id())
        seen[name] = seen.get(name, 0) + 1
        return name if seen[name] == 1 else f"{name}#{seen[name]}"

    def record(name, outcome, detail=""):
        if os.getpid() == main:  # a test's forked child may come here too
            write({"test": name, "outcome": outcome, "detail": detail[-DETAIL:]})

    class Recorder(unittest.TextTestResult):
        def __init__(self, *args):
            super().__init__(*args)
            self.running = None

        def startTest(self, test):
            super().startTest(test)
            self.running, self.worst = name_of(test), ("ok", "")
            if os.getpid() == main:
                write({"begun": self.running})

        def stopTest(self, test):
            super().stopTest(test)
            record(self.running, *self.worst)
            self.running = None

        def note(self, test, outcome, detail=""):
            if self.running is None:
                record(name_of(test), outcome, detail)
            elif OUTCOMES.index(outcome) > OUTCOMES.index(self.worst[0]):
                self.worst = outcome, detail

        def note_error(self, test, error, outcome):
            self.note(test, outcome, "".join(traceback.format_exception(*error)))

        def addSkip(self, test, reason):
            super().addSkip(test, reason)
            self.note(test, "skipped", reason)

        def addExpectedFailure(self, test, error):
            super().addExpectedFailure(test, error)
            self.note(test, "expected failure")

        def addUnexpectedSuccess(self, test):
            super().addUnexpectedSuccess(test)
            self.note(test, "unexpected success")

        def addFailure(self, test, error):
            super().addFailure(test, error)
            self.note_error(test, error, "failed")

        def addError(self, test, error):
            super().addError(test, error)
            self.note_error(test, error, "error")

        def addSubTest(self, test, subtest, error):
            super().addSubTest(test, subtest, error)
            if error is not None:
                failed = issubclass(error[0], test.failureException)
                self.note_error(subtest, error, "failed" if failed else "error")

    def run_suite(suite):
        unittest.TextTestRunner(verbosity=0, resultclass=Recorder).run(suite)

    def run_doctest(module, verbosity=None, optionflags=0):
        run_suite(doctest.DocTestSuite(module, optionflags=optionflags))
        return 0, 1

    # Where CPython 3.9 had what those tests import.
    support.import_module = import_helper.import_module
    support.TESTFN, support.unlink = os_helper.TESTFN, os_helper.unlink
    for package in sqlite3, test:
        package.__path__.append(f"{FURTHER_TESTS}/{package.__name__}")
    support._run_suite, support.run_doctest = run_suite, run_doctest
    arguments = cmdline._parse_args(["-u", ",".join(resources), module])
    setup.setup_tests(arguments)
    support.set_match_tests(None, LEFT_OUT)
    support.verbose = False
    directory = f"/tmp/test_python_{main}"
    os.mkdir(directory)
    os.chdir(directory)
    try:
        runtest._runtest_inner2(arguments, module)
    except unittest.SkipTest as reason:
        record(f"test.{module}", "skipped", str(reason))
    except Exception:
        record(f"test.{module}", "error", traceback.format_exc())


if __name__ == "__main__":
    with open("/input/data.json") as file:
        order = json.load(file)
    if sys.argv[1:] == ["tests"]:
        run(order["module"], order["resources"])
    else:
        supervise(order["seconds"])
