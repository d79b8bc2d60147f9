"""Runs that are forks of a process with the imports, and the calls in such a fork."""

import functools
import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.launch.warm import WarmProcesses, WarmRun, in_new_process, number_of_devices
from tests.launch import callees
from tests.titan.test_training import argv


def end(run: WarmRun, seconds: float = 60) -> int:
    last = time.monotonic() + seconds
    while (code := run.poll()) is None:
        assert time.monotonic() < last
        time.sleep(0.02)
    return code


def test_a_call_in_a_new_process_returns_the_value_or_the_complaint():
    assert in_new_process(functools.partial(str.upper, "a")) == "A"
    with pytest.raises(InputError, match=r"^no such thing$"):
        in_new_process(functools.partial(callees.complain, "no such thing"))
    with pytest.raises(RuntimeError, match="exit code 7"):
        in_new_process(callees.leave)


@pytest.mark.slow
def test_forks_of_the_warm_process(dataset, tmp_path):
    """One fork server for all cases, because its imports take seconds."""
    environment = dict(os.environ)
    warm = WarmProcesses(threads=1)
    assert dict(os.environ) == environment
    assert warm.call(number_of_devices) == 0
    # A fork keeps only one thread, so the process that forks must have only one.
    server = Path(f"/proc/{forkserver._forkserver._forkserver_pid}")
    assert len(list((server / "task").iterdir())) == 1
    blocked = int((server / "status").read_text().partition("SigBlk:")[2].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        assert blocked >> (number - 1) & 1

    log = tmp_path / "run.log"
    log.write_text("earlier\n")
    wrong = warm.start(["--config", "nonsense"], log, {})
    assert end(wrong) == 2
    assert log.read_text().startswith("earlier\nexact_titan.train: error: --config is 'nonsense'")
    wrong.send_signal(signal.SIGTERM)  # the run has ended

    # Two runs at one time have their own process groups of torch, their own output and their own environment.
    saved = ["--checkpoint.enable", "--checkpoint.interval", "100000"]
    runs = {}
    for name, steps in (("short", 2), ("long", 100_000)):
        given = argv(dataset, tmp_path / name, *saved, steps=steps)
        runs[name] = warm.start(given, tmp_path / f"{name}.log", {"EXACT_TITAN_COMMAND": f"study of {name}"})
    assert end(runs["short"]) == 0
    while "step 3/" not in (tmp_path / "long.log").read_text():
        assert runs["long"].poll() is None
        time.sleep(0.02)
    runs["long"].send_signal(signal.SIGTERM)
    assert end(runs["long"]) == 75
    assert "study of long" in (tmp_path / "long.log").read_text()
    assert "study of long" not in (tmp_path / "short.log").read_text()
    assert "step 3/" not in (tmp_path / "short.log").read_text()

    killed = warm.start(argv(dataset, tmp_path / "killed", *saved), tmp_path / "killed.log", {})
    killed.send_signal(signal.SIGKILL)
    assert end(killed) == -signal.SIGKILL
