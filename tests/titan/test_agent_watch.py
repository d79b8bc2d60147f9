"""Ranks whose elastic agent ends first. Small processes replace the agent and the rank, without torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_titan.system import processes
from exact_titan.titan.agent_watch import find_agent
from tests.support import ROOT

RANK = """
import sys, time
from exact_titan.titan import agent_watch
from exact_titan.titan.signals import StopSignals

agent_watch.SAVE_SECONDS, agent_watch._LOOK_SECONDS = 0.5, 0.05
with StopSignals() as signals:
    if sys.argv[1] == "asked":
        signals.on_first(lambda reason: print("asked by", reason, flush=True))
    print(agent_watch.find_agent().process, flush=True)
    agent_watch.watch_agent(signals)
    time.sleep(60)
"""
AGENT = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env=os.environ | {"TORCHELASTIC_RUN_ID": "a run"})
"""
CODE = "import subprocess, sys; print(subprocess.run([sys.executable, *sys.argv[1:]]).returncode, flush=True)"


def run_orphan(log: Path, kind: str) -> tuple[int, list[str]]:
    """Kill the agent of a rank. Return the agent's process id and the lines of the rank and of its end.

    A program stands between the agent and the rank, as a script that torchrun starts.
    """
    rank = log.with_suffix(".py")
    rank.write_text(RANK)
    with log.open("wb") as out:
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT, sys.executable, "-c", CODE, str(rank), kind],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
        )

    def wait_for_lines(number: int) -> list[str]:
        end = time.monotonic() + 30
        while len(lines := log.read_text().splitlines()) < number:
            assert time.monotonic() < end, lines
            time.sleep(0.02)
        return lines

    assert wait_for_lines(1) == [str(agent.pid)]
    agent.kill()
    agent.wait()
    return agent.pid, wait_for_lines(4 if kind == "asked" else 3)


def test_the_end_of_the_agent_stops_the_run_and_a_save_that_hangs_is_given_up(tmp_path):
    pid, lines = run_orphan(tmp_path / "log", "asked")
    assert lines[1:] == [
        f"asked by The end of the launcher (process {pid})",
        f"exact_titan.train: The end of the launcher (process {pid}), and no save within 0 s; the last complete "
        "checkpoint counts: exits at once",
        "1",
    ]


def test_a_run_without_steps_ends_at_once_with_its_agent(tmp_path):
    pid, lines = run_orphan(tmp_path / "log", "starting")
    assert lines[1:] == [
        f"exact_titan.train: The end of the launcher (process {pid}) before the first step: exits at once",
        "1",
    ]


def test_a_process_without_an_agent_has_none(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert find_agent() is None


def test_an_agent_that_ended_before_the_first_look_is_found(monkeypatch):
    """The kernel has given the rank another parent, which is no Python program."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    found = find_agent()
    assert found is not None
    assert found.process == os.getppid()
    for word, ended in (("/sbin/init", True), ("/usr/bin/python3.11", False)):
        monkeypatch.setattr(processes, "words", lambda process, word=word: [word])
        found = find_agent()
        assert found is not None
        assert found.has_ended() == ended
    monkeypatch.setattr(os, "getppid", lambda: 0)  # the parent is outside the container
    assert find_agent() is None


def test_a_zombie_and_a_reused_id_have_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert processes.parent(child.pid) == os.getpid()
    first = processes.started(child.pid)
    assert first is not None
    child.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while processes.started(child.pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()  # a zombie until its parent collects it
    assert processes.started(child.pid) is None
    child.wait()
    assert processes.started(child.pid) is None
    assert processes.parent(child.pid) == 0


@pytest.mark.parametrize("process", [0, 2**22 + 1])
def test_processes_that_do_not_exist(process):
    assert processes.started(process) is None
    assert (processes.words(process), processes.environment(process)) == ([], [])
