"""Real signals to one process, without torch."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ROOT

PROGRAM = """
import hashlib, sys
from exact_titan.titan import signals

signals.SAME_SECONDS = 0.5
with signals.StopSignals() as stop:
    print("ready", flush=True)
    if sys.argv[1] == "late":
        sys.stdin.readline()
    stop.on_first(lambda name: print("asked by", name, flush=True))
    if sys.argv[1] == "busy":
        # This call runs in C for minutes, without the interpreter's lock. No Python handler runs in this time.
        hashlib.pbkdf2_hmac("sha256", b"x", b"x", 10**9)
    if sys.argv[1] == "ignoring":
        stop.ignore()
    print("waits", flush=True)
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def program(request):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM, request.param]

    def hangup() -> None:
        # The tests may run under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if request.param == "nohup" else signal.SIG_DFL)

    with subprocess.Popen(command, env=environment, text=True, preexec_fn=hangup, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def send_line(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("program", ["busy"], indirect=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_the_first_signal_asks_and_the_second_exits_even_inside_a_c_call(program, name):
    program.send_signal(signal.Signals[name])
    assert program.stdout.readline() == f"asked by {name}\n"
    program.send_signal(signal.Signals[name])
    time.sleep(0.2)
    assert program.poll() is None, "a repeat of the same signal within SAME_SECONDS does not count"
    time.sleep(0.5)
    program.send_signal(signal.Signals[name])
    assert program.wait(5) == 128 + signal.Signals[name]
    assert program.stderr.read() == f"exact_titan.train: {name} after {name}: exits at once\n"


@pytest.mark.parametrize("program", ["busy"], indirect=True)
def test_another_signal_exits_without_delay(program):
    program.send_signal(signal.SIGUSR1)
    assert program.stdout.readline() == "asked by SIGUSR1\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("program", ["late"], indirect=True)
def test_an_early_signal_is_reported_to_a_later_listener(program):
    program.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    send_line(program)
    assert program.stdout.readline() == "asked by SIGTERM\n"


@pytest.mark.parametrize("program", ["ignoring"], indirect=True)
def test_ignored_signals_have_no_effect(program):
    assert program.stdout.readline() == "waits\n"
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        program.send_signal(signal.SIGINT)
        send_line(program)
    assert program.wait(5) == 0
    assert program.stdout.read() == "left\n"


@pytest.mark.parametrize("program", ["plain"], indirect=True)
def test_the_former_handlers_are_restored(program):
    assert program.stdout.readline() == "waits\n"
    send_line(program)
    assert program.stdout.readline() == "left\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait(5) == -signal.SIGTERM


@pytest.mark.parametrize("program", ["nohup"], indirect=True)
def test_under_nohup_the_hangup_stays_ignored(program):
    assert program.stdout.readline() == "waits\n"
    program.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    for _ in range(2):
        send_line(program)
    assert program.wait(5) == 0
    assert program.stdout.read() == "left\n"


TERMINAL = """
import fcntl, os, sys, termios, time
from pathlib import Path
from exact_titan.titan.signals import StopSignals

fcntl.ioctl(1, termios.TIOCSCTTY, 0)
asked = []
with StopSignals() as stop:
    stop.on_first(asked.append)
    print("ready", flush=True)
    Path(sys.argv[1]).touch()
    while not asked:
        time.sleep(0.01)
    print("a line for a terminal that has closed", flush=True)
    print("and another one", file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text(*asked)
"""


def test_a_closed_terminal_stops_the_run_and_later_lines_are_no_error(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TERMINAL, str(tmp_path / "asked")]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(theirs)
    end = time.monotonic() + 20
    while not (tmp_path / "asked").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert os.read(ours, 100).startswith(b"ready")
    os.close(ours)
    assert process.wait(10) == 0
    assert (tmp_path / "asked").read_text() == "SIGHUP"
