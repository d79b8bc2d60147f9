import errno
import os
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from exact_titan.entry import run
from exact_titan.errors import InputError
from tests.support import ROOT


def test_wrong_input_and_errors_about_files_are_one_line_and_2(capfd: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise InputError("--out 'x\x1b[2J\udcff\n\u202e' exists")

    assert run("program", wrong) == 2
    assert capfd.readouterr().err == "program: error: --out 'x\\x1b[2J\\udcff \\u202e' exists\n"
    assert run("program", lambda: Path("none\x1b").read_bytes()) == 2
    assert capfd.readouterr().err == "program: error: none\\x1b: No such file or directory: correct the path\n"


def test_a_bug_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run("program", lambda: 1 // 0)
    with pytest.raises(ConnectionRefusedError):
        run("program", lambda: (_ for _ in ()).throw(ConnectionRefusedError(errno.ECONNREFUSED, "refused")))


def test_a_command_ends_with_its_own_code() -> None:
    assert run("program", lambda: None) == 0
    assert run("program", lambda: 75) == 75


def test_signals_that_a_command_ignores_until_its_process_ends_stay_ignored() -> None:
    """torchrun sends SIGTERM to the other ranks after the end of one rank."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        assert run("program", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN) and 75) == 75
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert run("program", lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) == former


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda one: str(one)
)
def test_a_signal_ends_a_command_by_an_exception(number: signal.Signals, code: int, capfd) -> None:
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)  # a second signal does not interrupt the clean-up
            cleaned.append(True)

    former = signal.getsignal(number)
    try:
        ended = run("program", command)
    except SystemExit as end:
        ended = int(end.code or 0)
    assert (ended, cleaned) == (code, [True])
    assert capfd.readouterr().err.count("\n") == 1
    assert signal.getsignal(number) == former


def test_an_ignored_hangup_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("program", lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("shell", "code", "message"),
    [
        ("{command} > /dev/full", 2, "standard output: No space left on device"),
        ("{command} > /dev/full 2> /dev/full", 2, ""),
        ("{command} --help > /dev/full", 2, "standard output: No space left on device"),
        ("{command} >&-", 0, ""),
        ("{command} | head -n 1 > /dev/null; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("PYTHONIOENCODING=ascii {command} > /dev/null", 0, ""),
    ],
)
def test_standard_output_that_cannot_be_written(shell: str, code: int, message: str) -> None:
    act = "[print('…') for _ in range(100_000)]; '--help' in sys.argv and sys.exit()"
    program = f"import sys, exact_titan.entry as e; sys.exit(e.run('program', lambda: exec({act!r})))"
    command = shlex.join([sys.executable, "-c", program])
    done = subprocess.run(["bash", "-c", shell.format(command=command)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == bool(message)


def test_a_signal_inside_a_callback_of_the_garbage_collector_ends_a_command(capfd) -> None:
    """Python drops an exception of such a callback."""

    class Collected:
        pass

    def command() -> None:
        collected = Collected()
        callback = weakref.ref(collected, lambda _: signal.raise_signal(signal.SIGTERM))
        del collected
        assert callback() is None
        time.sleep(5)

    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run("program", command)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == former
    assert capfd.readouterr().err == "program: ended by SIGTERM\n"
