"""Requests to stop a run, some under real torchrun: the run saves after the step, exits with 75, and can resume."""

import os
import re
import shutil
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests import warm_agent, warm_ranks
from tests.support import BackgroundRun, background_torchrun
from tests.warm_agent import WarmAgent
from tests.warm_ranks import Run

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}

GROUPS = {
    kind: [f"--parallelism.{kind}_parallel_degree", "2", "--training.global_batch_size", "6"]
    for kind in ("context", "tensor")
}
"""Options of two ranks that compute the same windows."""


def arguments(dataset, folder: Path, *options: str) -> list[str]:
    sizes = [argument for name, size in SIZES.items() for argument in (f"--architecture.{name}", str(size))]
    return [
        *["--config", "from_scratch", "--dump_folder", str(folder / "out")],
        *["--dataloader.dataset_path", str(dataset.folder), "--training.seq_len", str(dataset.window)],
        # A step of about half a second: 16 forward passes.
        *["--training.mixed_precision_param", "float32", "--training.global_batch_size", "16"],
        *["--training.steps", "100000", "--metrics.log_freq", "1", "--validator.no-enable", *sizes, *options],
    ]


def torchrun_train(dataset, folder: Path) -> AbstractContextManager[BackgroundRun]:
    return background_torchrun(2, "-m", "exact_titan.train", *arguments(dataset, folder), cwd=folder)


def warm_torchrun_train(dataset, folder: Path) -> AbstractContextManager[WarmAgent]:
    return warm_agent.background_torchrun(2, "-m", "exact_titan.train", *arguments(dataset, folder), cwd=folder)


def warm_train(dataset, folder: Path, *options: str) -> AbstractContextManager[warm_ranks.Launch]:
    return warm_ranks.background(2, "exact_titan.train", *arguments(dataset, folder, *options), cwd=folder)


def steps(run: Run) -> list[int]:
    """Return the steps that the log names."""
    return [int(step) for step in re.findall(r"^step (\d+)/", run.output(), re.MULTILINE)]


def check_stopped(run: Run, folder: Path, *, before: int, reason: str) -> None:
    """Check that the run ended without an error, at most two steps after ``before``, and saved its last step."""
    # torchrun has one exit code for every failure. The exit code 75 of both warm ranks shows that no signal ended them.
    assert run.end() == ([75, 75] if isinstance(run, warm_ranks.Launch) else 1), run.output()
    last = steps(run)[-1]
    assert before <= last <= before + 2
    assert [path.name for path in (folder / "out/checkpoint").iterdir()] == [f"step-{last}"]
    assert (folder / "out/exit_code").read_text() == "75\n"
    assert re.search(f"{reason}: stopped after step {last} and saved", run.output())
    assert "Traceback" not in run.output().partition("torch/distributed/run.py")[0].partition("stopped after")[0]


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_signal_to_torchrun_saves_on_all_ranks(dataset, tmp_path, name):
    with warm_torchrun_train(dataset, tmp_path) as run:
        run.wait_for("step 2/")
        before = steps(run)[-1]
        run.agent.send_signal(signal.Signals[name])
        check_stopped(run, tmp_path, before=before, reason=rf"{name} on rank \d")


@pytest.mark.slow
def test_sigusr1_to_real_torchrun_saves_on_all_ranks(dataset, tmp_path):
    with torchrun_train(dataset, tmp_path) as run:
        run.wait_for("step 2/")
        before = steps(run)[-1]
        run.agent.send_signal(signal.SIGUSR1)
        check_stopped(run, tmp_path, before=before, reason=r"SIGUSR1 on rank \d")


@pytest.mark.parametrize(
    ("name", "rank", "layout"),
    [
        pytest.param("SIGTERM", 0, [], id="SIGTERM"),
        pytest.param("SIGINT", 1, GROUPS["context"], id="SIGINT context"),
        pytest.param("SIGUSR1", 0, GROUPS["tensor"], id="SIGUSR1 tensor", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_rank_stops_all(dataset, tmp_path, name, rank, layout):
    with warm_train(dataset, tmp_path, *layout) as run:
        run.wait_for("step 2/")
        before = steps(run)[-1]
        os.kill(run.workers()[rank], signal.Signals[name])
        check_stopped(run, tmp_path, before=before, reason=f"{name} on rank {rank}")


def test_the_stop_file_stops_all_ranks(dataset, tmp_path):
    with warm_train(dataset, tmp_path) as run:
        run.wait_for("step 2/")
        before = steps(run)[-1]
        (tmp_path / "out/stop").touch()
        check_stopped(run, tmp_path, before=before, reason=r"The file \S+/out/stop on rank 0")
    assert not (tmp_path / "out/stop").exists()


@pytest.mark.slow
def test_an_interrupted_validation_is_repeated(dataset, tmp_path):
    endless = ["--validator.enable", "--validator.freq", "2", "--validator.steps", "1000000"]
    with warm_train(dataset, tmp_path, *endless, *GROUPS["context"]) as run:
        log = tmp_path / "out/logs/rank_0.log"
        run.wait_until(lambda: log.exists() and "Validating" in log.read_text(), "Validating")
        os.kill(run.workers()[1], signal.SIGTERM)
        check_stopped(run, tmp_path, before=2, reason="SIGTERM on rank 1")
        assert steps(run) == [1, 2]
    short = [*endless, "--validator.steps", "2", "--checkpoint.interval", "2", "--training.global_batch_size", "6"]
    outputs = []
    for last in ("3", "2"):
        again = arguments(dataset, tmp_path, *short, "--training.steps", last)
        done = warm_ranks.run(1, "exact_titan.train", *again, cwd=tmp_path)
        assert done.codes == [0], done.stdout + done.stderr
        outputs.append(re.findall(r"^((?:validation )?step \d+)", done.stdout, re.MULTILINE))
        # Go back to step 2. The validation of step 2 is finished now.
        shutil.rmtree(tmp_path / "out/checkpoint/step-3", ignore_errors=True)
    assert outputs == [["validation step 2", "step 3"], []]


@pytest.mark.slow
def test_a_signal_during_the_start_stops_the_run_before_the_first_step(dataset, tmp_path):
    """The signal comes under torchrun, before the import of torch has finished."""
    with torchrun_train(dataset, tmp_path) as run:
        run.wait_for("Loading torch")
        time.sleep(0.5)  # the other rank also handles signals after this time
        run.agent.send_signal(signal.SIGTERM)
        assert run.end() == 1
        assert re.search(r"SIGTERM on rank \d: stopped before the first step, there is nothing to save", run.output())
    assert (tmp_path / "out/exit_code").read_text() == "75\n"
    assert not (tmp_path / "out/checkpoint").exists()


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_inside_a_collective(dataset, tmp_path):
    with warm_train(dataset, tmp_path) as run:
        run.wait_for("step 2/")
        first, second = run.workers()
        # Rank 0 now waits for rank 1 without end.
        os.kill(second, signal.SIGSTOP)
        os.kill(first, signal.SIGUSR1)
        with pytest.raises(AssertionError, match="no end"):
            run.wait_until(lambda: first not in run.workers(), "end", timeout=3)
        os.kill(first, signal.SIGTERM)
        run.wait_for("SIGTERM after SIGUSR1: exits at once", timeout=5)
        os.kill(second, signal.SIGCONT)
        codes = run.end()
        assert codes[0] == 143
        # Rank 1 has lost rank 0. An error ends rank 1, or the SIGTERM that follows the failure of a rank.
        assert codes[1] in (1, -signal.SIGTERM), run.output()
    assert not (tmp_path / "out/exit_code").exists()


@pytest.mark.slow
def test_a_collective_that_hangs_ends_with_an_error(dataset, tmp_path):
    with warm_train(dataset, tmp_path, "--comm.train_timeout_seconds", "2") as run:
        run.wait_for("step 2/")
        first, second = run.workers()
        os.kill(second, signal.SIGSTOP)
        run.wait_until(lambda: first not in run.workers(), "end of the rank that waits", timeout=30)
        os.kill(second, signal.SIGCONT)
        assert run.end()[0] == 1, run.output()
    assert not (tmp_path / "out/exit_code").exists()
    assert not (tmp_path / "out/.lock").exists()


@pytest.mark.slow
def test_a_stop_without_checkpoints_is_an_error(dataset, tmp_path):
    given = arguments(dataset, tmp_path, "--checkpoint.no-enable")
    with warm_ranks.background(1, "exact_titan.train", *given, cwd=tmp_path) as run:
        run.wait_for("step 1/")
        run.send_signal(signal.SIGTERM)
        assert run.end() == [1]
        assert "and nothing is saved: checkpointing is off" in run.output()
    assert not (tmp_path / "out/exit_code").exists()
