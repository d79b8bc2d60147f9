"""Real signals to one process, without torch."""

import os
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
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def send_line(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("program", ["busy"], indirect=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
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
