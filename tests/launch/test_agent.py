"""``exact-titan train`` as a user starts it: processes, exit codes, Ctrl-C, crashes.

Two tests start every process as a user does. In the other tests, forks of the warm server take the place of new
Python processes, because the imports take most of the time (:mod:`tests.forked_ranks`).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from exact_titan.errors import InputError
from exact_titan.launch import agent
from tests import warm_agent, warm_ranks
from tests.support import ROOT, BackgroundRun

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}


def arguments(dataset, nproc: int, *options: str) -> list[str]:
    sizes = [f"--architecture.{name}={size}" for name, size in SIZES.items()]
    return [
        *["train", "--nproc", str(nproc), "from_scratch", "--dump_folder", "out"],
        *["--dataloader.dataset_path", str(dataset.folder), "--training.seq_len", str(dataset.window)],
        *["--training.mixed_precision_param", "float32", "--metrics.log_freq", "1", "--validator.no-enable"],
        *["--training.steps", "2", *sizes, *options],
    ]


def endless(dataset, nproc: int, *options: str) -> list[str]:
    return arguments(dataset, nproc, "--training.steps", "100000", "--training.global_batch_size", "8", *options)


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return plain | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def check_quiet(output: str) -> None:
    """Check that the output has no message of torchrun."""
    for noise in ("ChildFailedError", "torch/distributed/run.py", "torch.distributed.elastic", "closing signal"):
        assert noise not in output


def train(dataset, folder: Path, nproc: int, *options: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of ``exact-titan train``. All processes are forks."""
    given = arguments(dataset, nproc, *options)
    done = warm_ranks.run(0, "exact_titan.__main__", *given, cwd=folder, timeout=200, agent=True)
    check_quiet(done.stdout + done.stderr)
    return done.codes[0], done.stdout, done.stderr


both = pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.slow), 2])


@both
def test_a_finished_run_is_code_0(dataset, tmp_path, nproc):
    command = [sys.executable, "-m", "exact_titan", *arguments(dataset, nproc)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    check_quiet(done.stdout + done.stderr)
    assert (tmp_path / "out/exit_code").read_text() == "0\n"
    assert (tmp_path / "out/checkpoint/step-2").is_dir()
    assert done.stdout.splitlines()[0] == "Config: recipe from_scratch"


@both
def test_a_wrong_value_is_code_2_and_one_line(dataset, tmp_path, nproc):
    code, _, err = train(dataset, tmp_path, nproc, "--loss.alpha=-1")
    assert code == 2
    assert [line for line in err.splitlines() if "loss.alpha" in line] == [
        "exact_titan.train: error: loss.alpha is -1.0: the tail's extra weight must be 0 or more and finite"
    ]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@both
def test_a_loss_that_is_not_finite_is_code_65(dataset, tmp_path, nproc):
    code, out, err = train(
        dataset, tmp_path, nproc, "--optimizer.lr", "1e30", "--lr_scheduler.warmup_steps", "0", "--training.steps", "9"
    )
    assert code == 65, err
    assert "exact_titan.train: stopped: the" in out + err
    assert "Traceback" not in err


@both
def test_a_crash_is_code_1_with_the_end_of_the_traceback(dataset, tmp_path, monkeypatch, nproc):
    crashing = nproc - 1
    (tmp_path / "crashing.py").write_text(
        f"import os\nif os.environ['RANK'] == '{crashing}':\n    raise RuntimeError('a bug of rank {crashing}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, err = train(dataset, tmp_path, nproc, "--override.imports", "crashing.override")
    assert code == 1, err
    assert f"a bug of rank {crashing}" in err
    assert re.search(rf"exact-titan train: crashed: .*rank {crashing} (ended with exit code 1|raised an error)", err)
    if crashing:
        assert "exact-titan train: rank 1 crashed, the end of its errors:" in err


def test_the_rank_that_raised_is_named_although_the_agent_ended_it(tmp_path, capsys):
    """Rank 1 raises an error and cleans up. Rank 0 loses the connection and ends first. The agent ends rank 1."""
    traceback = "Traceback (most recent call last):\nRuntimeError: a bug of rank 1\n"
    files = {rank: tmp_path / f"rank_{rank}.stderr.log" for rank in (1, 2)}
    files[1].write_text(traceback)
    files[2].write_text("a warning\n")
    failures = {0: ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file="")}
    agent._report_crash({0: 1, 1: -signal.SIGTERM, 2: -signal.SIGTERM}, failures, files)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "exact-titan train: rank 1 crashed, the end of its errors:"
    assert lines[2] == "  RuntimeError: a bug of rank 1"
    assert lines[3] == (
        f"exact-titan train: crashed: rank 0 ended with exit code 1, rank 1 raised an error; see {tmp_path}"
    )


@contextlib.contextmanager
def real_background(arguments: list[str], folder: Path) -> Iterator[BackgroundRun]:
    log = folder / "train.log"

    def default() -> None:
        # A shell starts background programs with SIGINT ignored, and nohup starts programs with SIGHUP ignored.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "exact_titan", *arguments],
            cwd=folder,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=default,
        )
        run = BackgroundRun(process, log)
        try:
            yield run
        finally:
            run.kill()


def background(dataset, folder: Path, nproc: int) -> AbstractContextManager[warm_agent.WarmAgent]:
    return warm_agent.background("exact_titan.__main__", *endless(dataset, nproc), cwd=folder)


@pytest.mark.parametrize(("nproc", "kind"), [pytest.param(1, "real", marks=pytest.mark.slow), pytest.param(2, "forks")])
def test_ctrl_c_saves_and_is_code_75(dataset, tmp_path, nproc, kind):
    real = real_background(endless(dataset, nproc), tmp_path)
    with real if kind == "real" else background(dataset, tmp_path, nproc) as run:
        run.wait_for("step 2/")
        run.agent.send_signal(signal.SIGINT)
        assert run.end() == 75, run.output()
    assert re.search(r"SIGINT on rank \d: stopped after step \d+ and saved", run.output())
    assert "Traceback" not in run.output()
    assert (tmp_path / "out/exit_code").read_text() == "75\n"
    assert len(list((tmp_path / "out/checkpoint").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_other_signals_save(dataset, tmp_path, name):
    with background(dataset, tmp_path, 2) as run:
        run.wait_for("step 2/")
        run.agent.send_signal(signal.Signals[name])
        assert run.end() == 75, run.output()


@pytest.mark.parametrize("ignored", [True, False])
def test_the_hangup_stays_ignored_under_nohup(tmp_path, ignored):
    class FinishedAgent:
        killed = False

        def run(self) -> types.SimpleNamespace:
            return types.SimpleNamespace(failures={})

        def exit_codes(self) -> dict[int, int]:
            return {0: 0}

        def output(self, rank: int, stream: str) -> None:
            return None

    numbers = [getattr(signal, name) for name in agent.SIGNALS.split(",")]
    former = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        assert agent._wait(FinishedAgent(), tmp_path) == 0
        assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == ignored
        # torchrun's code sets its own handler for every signal of this list.
        assert ("SIGHUP" in os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]) != ignored
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_ctrl_c_twice_kills(dataset, tmp_path):
    with background(dataset, tmp_path, 2) as run:
        run.wait_for("step 2/")
        workers = run.workers()
        os.kill(workers[0], signal.SIGSTOP)  # a rank that hangs
        run.agent.send_signal(signal.SIGINT)
        time.sleep(2)
        assert run.running()
        run.agent.send_signal(signal.SIGINT)
        assert run.end(20) == 130, run.output()
        assert "killed after the second signal" in run.output()
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_killed_rank_is_a_crash(dataset, tmp_path):
    with background(dataset, tmp_path, 2) as run:
        run.wait_for("step 2/")
        os.kill(run.workers()[1], signal.SIGKILL)
        assert run.end() == 1, run.output()
        assert "was killed by SIGKILL (out of memory?)" in run.output()
    assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out/exit_code").exists()


def test_the_default_number_of_processes(monkeypatch, capsys):
    monkeypatch.setattr(agent.torch.accelerator, "device_count", lambda: 0)
    assert agent.number_of_processes(None) == 1
    assert "Starting 1 process (no GPU" in capsys.readouterr().out
    assert agent.number_of_processes(3) == 3
    monkeypatch.setattr(agent.torch.accelerator, "device_count", lambda: 2)
    assert agent.number_of_processes(None) == 2
    assert "Starting 2 processes (2 GPUs)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--nproc is 3, but this machine has 2 GPUs"):
        agent.number_of_processes(3)
