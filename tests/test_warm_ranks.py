"""The launcher of the tests: forked ranks train and end as torchrun's ranks do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm_ranks
from tests.support import ROOT, torchrun
from tests.titan.test_training import argv

PROGRAM = "tests.test_warm_ranks"
"""This file is also the program of the ranks."""


def test_losses_and_gradient_norms_equal_torchruns_bit_for_bit(dataset, tmp_path):
    specs = [
        {"name": rule, "trainer": "exact", "argv": argv(dataset, tmp_path / rule, "--loss.rule", rule, steps=4)}
        for rule in ("standard", "exact")
    ]
    (tmp_path / "spec.json").write_text(json.dumps(specs))
    warm = warm_ranks.run(2, "tests.titan.recorded_runs", tmp_path / "spec.json", tmp_path / "warm.json", cwd=tmp_path)
    assert warm.codes == [0, 0], warm.stderr
    runner = str(ROOT / "tests/titan/recorded_runs.py")
    under_torchrun = torchrun(2, runner, str(tmp_path / "spec.json"), str(tmp_path / "torchrun.json"), cwd=tmp_path)
    assert under_torchrun.returncode == 0, under_torchrun.stderr
    found, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("warm", "torchrun"))
    assert [len(expected[rule]["steps"]) for rule in ("standard", "exact")] == [4, 4]
    assert found == expected


def test_a_rank_gets_its_environment_and_its_exit_code_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("ADDED", "added")
    done = warm_ranks.run(3, PROGRAM, "exit", "given", cwd=tmp_path)
    assert done.codes == [70, 71, 72]
    assert sorted(done.stdout.splitlines()) == [f"{rank} {rank} 3 3 {tmp_path} given added" for rank in range(3)]
    assert done.stderr == ""


def test_a_process_without_ranks_has_no_rank_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    done = warm_ranks.run(0, PROGRAM, "exit", cwd=tmp_path)
    assert done.codes == [1]
    assert done.stderr.splitlines()[-1] == "KeyError: 'RANK'"


def test_when_one_rank_fails_the_others_get_sigterm(tmp_path):
    assert warm_ranks.run(3, PROGRAM, "fail", cwd=tmp_path).codes == [-signal.SIGTERM, 7, -signal.SIGTERM]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_reaches_one_rank_or_all(tmp_path, name):
    with warm_ranks.background(2, PROGRAM, "wait", cwd=tmp_path) as ranks:
        ranks.wait_until(lambda: ranks.output().count("waits") == 2, "waits")
        assert ranks.workers() == ranks.pids
        ranks.send_signal(signal.Signals[name])
        assert ranks.end() == [-signal.Signals[name]] * 2
        assert ranks.workers() == []


def test_remaining_ranks_are_killed_with_the_launch_or_its_client(tmp_path):
    with warm_ranks.background(2, PROGRAM, "wait", cwd=tmp_path) as ranks:
        ranks.wait_until(lambda: ranks.output().count("waits") == 2, "waits")
    assert ranks.codes == [-signal.SIGKILL] * 2
    client = """if True:
        import os, signal, sys
        from pathlib import Path
        from tests import warm_ranks
        warm_ranks._server = lambda: sys.argv[1]
        with warm_ranks.background(2, "tests.test_warm_ranks", "wait", cwd=Path.cwd()) as ranks:
            print(*ranks.pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", client, warm_ranks._server()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    pids = done.stdout.split()
    assert len(pids) == 2, done.stderr
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def main(what: str, *arguments: str) -> None:
    rank = os.environ["RANK"]
    if what == "exit":
        names = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        # All leave by themselves, however far apart the ranks start.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(rank).touch()
        while not all(Path(str(other)).exists() for other in range(int(os.environ["WORLD_SIZE"]))):
            time.sleep(0.01)
        words = [rank, *(os.environ[name] for name in names), str(Path.cwd()), *arguments, os.environ["ADDED"]]
        # One write, because the ranks share the file.
        os.write(1, f"{' '.join(words)}\n".encode())
        sys.exit(70 + int(rank))
    if what == "fail" and rank == "1":
        sys.exit(7)
    print("waits", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
