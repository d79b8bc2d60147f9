"""Signals of one process, real ones; no torch in it."""

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
        # In C for minutes, without the interpreter's lock: no handler in Python gets its turn.
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


def go_on(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("program", ["busy"], indirect=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_first_asks_and_a_second_exits_at_once_even_from_a_call_into_c(program, name):
    program.send_signal(signal.Signals[name])
    assert program.stdout.readline() == f"asked by {name}\n"
    program.send_signal(signal.Signals[name])
    time.sleep(0.2)
    assert program.poll() is None, "the same signal again in no time is the same one"
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
def test_one_that_came_before_anybody_listened_is_handed_over(program):
    program.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    go_on(program)
    assert program.stdout.readline() == "asked by SIGTERM\n"


@pytest.mark.parametrize("program", ["ignoring"], indirect=True)
def test_when_ignored_none_does_anything_to_the_end(program):
    assert program.stdout.readline() == "waits\n"
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        program.send_signal(signal.SIGINT)
        go_on(program)
    assert program.wait(5) == 0
    assert program.stdout.read() == "left\n"


@pytest.mark.parametrize("program", ["plain"], indirect=True)
def test_behind_it_they_are_what_they_were(program):
    assert program.stdout.readline() == "waits\n"
    go_on(program)
    assert program.stdout.readline() == "left\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait(5) == -signal.SIGTERM
