"""scripts/train.slurm on a real Slurm with two nodes. Both nodes are this host: gloo on the CPU, one process a node."""

import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import warm_ranks
from tests.support import ROOT

SCRIPT = ROOT / "scripts/train.slurm"
LONG = 400


class Cluster:
    """Runs Slurm's commands in a folder, as a user does."""

    def __init__(self, conf: Path, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"SLURM_CONF": str(conf), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, **variables: str) -> str:
        """Run a command and return its output."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment | variables, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str, **variables: str) -> str:
        """Submit the script to both nodes and return the job's id.

        ``arguments`` are the options of sbatch, then ``--``, then the arguments of the script.
        """
        here = arguments.index("--")
        options, rest = arguments[:here], arguments[here + 1 :]
        return self.run("sbatch", "--parsable", "--nodes=2", *options, str(SCRIPT), *rest, **variables)

    def job(self, job: str) -> dict[str, str]:
        """Return Slurm's record of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", job)))

    def log(self, job: str) -> str:
        file = self.folder / f"slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def wait(self, job: str, until: Callable[[], bool], seconds: int = LONG) -> None:
        """Wait until a condition of a job is true. A failed job ends the wait."""
        deadline = time.monotonic() + seconds
        while not until():
            ended_early = self.job(job)["JobState"] == "FAILED" and not until()
            assert not ended_early, self.log(job)
            assert time.monotonic() < deadline, (self.job(job), self.log(job))
            time.sleep(0.5)

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Wait until a job has ended. Check twice, because a job that is queued again may look ended for a moment."""

        def ended() -> bool:
            return self.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

        self.wait(job, ended)
        time.sleep(3)
        self.wait(job, ended)
        return self.job(job)


@pytest.fixture
def cluster(slurm: Path, tmp_path: Path, dataset) -> Cluster:
    """Return a cluster that submits jobs from ``tmp_path``, the folder with run.toml."""
    (tmp_path / "run.toml").write_text(
        f"""
        recipe = "from_scratch"
        dump_folder = "out/{{rule}}"
        architecture = {{ dim = 32, n_layers = 2, n_heads = 4, n_kv_heads = 2, ffn_dim = 64 }}
        dataloader.dataset_path = "{dataset.folder}"
        training = {{ seq_len = 64, steps = 20, global_batch_size = 8, mixed_precision_param = "float32" }}
        metrics.log_freq = 1
        validator.enable = false
        debug.seed = 7
        """
    )
    return Cluster(slurm, tmp_path)


def scalars(file: Path) -> list:
    return EventAccumulator(str(file), {"scalars": 0}).Reload().Scalars("loss_metrics/cross_entropy")


def losses(run: Path) -> dict[int, float]:
    """Return the losses by step, from all event files of a run."""
    return {event.step: event.value for file in run.rglob("events.out.tfevents.*") for event in scalars(file)}


def step(run: Path) -> int:
    """Return the last step in the node logs."""
    logs = "".join(file.read_text() for file in run.glob("slurm/*/node-*.log"))
    return max(map(int, re.findall(r"\bstep (\d+)/\d+ \d+ %", logs)), default=0)


STEPS = 100
PACED = """
import os
import time

from torchtitan.config.override import override

from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.trainer import ExactTrainer

stock_step = ExactTrainer.train_step


def paced_step(self, data_iterator):
    time.sleep(1)
    stock_step(self, data_iterator)


@override(target=PackedDataLoader.Config, fqns=["dataloader"], description="one second more for every step")
def paced(config):
    if "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        ExactTrainer.train_step = paced_step
    return config
"""
"""A module of the run: the steps of a job's first start take longer than the time until the signal, on any machine."""


@pytest.mark.slow
def test_a_job_resumes_after_its_time_limit_with_the_losses_of_an_uninterrupted_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The time limit is two minutes. Slurm is exact to half a minute, so the signal comes after about one minute.

    The uninterrupted run trains meanwhile. Slurm waits two minutes before it starts a job again, and the test shortens
    the wait to some seconds. The second start has a longer limit, and its steps are not paced.
    """
    (tmp_path / "pace.py").write_text(PACED)
    with (tmp_path / "run.toml").open("a") as config:
        config.write('override.imports = ["pace.paced"]\n')
    steps = str(STEPS)
    job = cluster.submit("--time=2", "--signal=B:USR1@45", "--", "run.toml", "--training.steps", steps)
    options = ("--config", "run.toml", "--training.steps", steps, "--dump_folder", tmp_path / "unbroken")
    unbroken = warm_ranks.run(2, "exact_titan.train", *options, cwd=tmp_path, timeout=LONG)
    assert unbroken.codes == [0, 0], unbroken.stderr
    expected = losses(tmp_path / "unbroken")
    cluster.wait(job, lambda: cluster.job(job)["Restarts"] == "1")
    # Slurm must hear of the end of the first start before the second start. Its own wait is longer for this reason.
    time.sleep(5)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60", "StartTime=now")
    ended = cluster.wait_for_end(job)
    log, run = cluster.log(job), tmp_path / "out/exact"
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert log.count("saved, and queued again") == 1
    assert log.count("2 nodes (n[1-2]), 1 processes each") == 2
    assert log.count(f"-m exact_titan.train --config run.toml --training.steps {steps} \n") == 2
    assert (run / "exit_code").read_text() == "0\n"

    found = losses(run)
    assert sorted(found) == sorted(expected) == list(range(1, int(steps) + 1))
    assert found == expected

    folder = run / "slurm" / job
    node = (folder / "node-0.log").read_text() + (folder / "node-1.log").read_text()
    assert node.count("stopped after step") == 1
    for rank in (0, 1):
        assert (run / f"logs/rank_{rank}.log").read_text().count("Training starts at step") == 2
    assert node.count("resumed from step ") == 1
    for kept in (folder / "start-1", folder / "start-2"):
        assert (kept / "command.txt").read_text().endswith(f"train --config run.toml --training.steps {steps}\n")
        assert (kept / "config.toml").read_bytes() == (tmp_path / "run.toml").read_bytes()
        with tarfile.open(kept / "code.tar.gz") as code:
            assert code.extractfile("exact_titan/train.py").read() == (ROOT / "exact_titan/train.py").read_bytes()


@pytest.mark.slow
def test_a_job_that_may_not_restart_is_saved_and_the_same_command_resumes_it(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "out/exact"
    line = ("--time=60", "--", "run.toml", "--training.steps", "1000000")
    job = cluster.submit(*line, MAX_RESTARTS="0")
    cluster.wait(job, lambda: step(run) >= 3)
    # The signal goes to the processes of the step, including torchrun, as with --signal=USR1@….
    cluster.run("scancel", "--signal=USR1", job)
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), cluster.log(job)
    assert "saved, but not queued again: MAX_RESTARTS is 0" in cluster.log(job)
    saved = step(run)

    again = cluster.submit(*line, MAX_RESTARTS="9")
    cluster.wait(again, lambda: step(run) >= saved + 3)
    first = (run / "slurm" / again / "node-0.log").read_text() + (run / "slurm" / again / "node-1.log").read_text()
    assert f"resumed from step {saved:,}, " in first
    cluster.run("scancel", again)
    assert cluster.wait_for_end(again)["JobState"] == "CANCELLED"
    time.sleep(5)
    assert cluster.job(again)["JobState"] == "CANCELLED", "a cancelled job must not be queued again"
    assert not (run / "stop").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.alpha", "-1"], "exact_titan.train: error: loss.alpha is -1.0"),
        (["--training.global_batch_size", "3"], "times the number of processes (2)"),
    ],
)
def test_a_job_with_wrong_options_ends_with_one_line_before_the_run_starts(
    cluster: Cluster, tmp_path: Path, options: list[str], message: str
) -> None:
    job = cluster.submit("--time=60", "--", "run.toml", *options)
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), cluster.log(job)
    assert message in cluster.log(job).splitlines()[-1]
    assert len(cluster.log(job).splitlines()) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_job_that_crashes_is_not_queued_again(cluster: Cluster) -> None:
    job = cluster.submit("--time=60", "--", "run.toml", "--override.imports", "no.such.module")
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), cluster.log(job)
    assert re.search(r"the run ended with (1|143)$", cluster.log(job), re.MULTILINE), cluster.log(job)


STAND_INS = {
    "python": "mkdir -p out/slurm/7/start-$START && touch out/slurm/7/start-$START/command.txt && sleep 0.02; echo out",
    "srun": "[ -z $STEP ] || mkdir -p out/checkpoint/step-$STEP; [ -z $CODE ] || echo $CODE >out/exit_code; exit 1",
    "squeue": "echo ${STATE:-RUNNING}",
    "scontrol": '[ $1 != requeue ] || echo $2 >>requeued; [ "$1 $2" != "show node" ] || echo NodeAddr=a',
}


def start(folder: Path, number: int, **variables: str) -> tuple[int, str, int]:
    """Run the script once, with stand-ins for Slurm and for the run. Return exit code, output and requeues so far."""
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "2"}
    job |= {"SLURM_RESTART_COUNT": str(number - 1), "START": str(number), "PYTHON": "./python"}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "STEP": "", "CODE": "", **job, **variables}
    done = subprocess.run(
        ["bash", str(SCRIPT), "run.toml"], cwd=folder, env=environment, capture_output=True, text=True, timeout=30
    )
    requeued = folder / "requeued"
    return done.returncode, done.stdout, len(requeued.read_text().splitlines()) if requeued.exists() else 0


def test_only_a_saved_run_is_queued_again(tmp_path: Path) -> None:
    for number, (code, expected) in enumerate([("", 1), ("2", 2), ("65", 65), ("0", 0), ("75", 75)], start=1):
        # srun itself exits with 1, and the exit code of the previous start still exists.
        assert start(tmp_path, number, CODE=code, STEP="1")[::2] == (expected, int(code == "75"))
    code, output, requeues = start(tmp_path, 6, CODE="75", STEP="2", STATE="COMPLETING")
    assert (code, requeues) == (75, 1)
    assert "saved, but not queued again: the job is COMPLETING; the same command continues the run" in output
    code, output, requeues = start(tmp_path, 7, CODE="75", STEP="3", MAX_RESTARTS="6")
    assert (code, requeues) == (75, 1)
    assert "not queued again: MAX_RESTARTS is 6" in output


def test_a_run_without_progress_is_not_queued_again_forever(tmp_path: Path) -> None:
    assert start(tmp_path, 1, CODE="75", STEP="10")[2] == 1
    assert start(tmp_path, 2, CODE="75")[2] == 2
    assert start(tmp_path, 3, CODE="75")[2] == 3
    assert start(tmp_path, 4, CODE="75", STEP="11")[2] == 4
    assert [start(tmp_path, number, CODE="75")[2] for number in (5, 6)] == [5, 6]
    code, output, requeues = start(tmp_path, 7, CODE="75")
    assert (code, requeues) == (75, 6)
    assert "the run was told to stop three times before a step was done, see --time and --signal" in output


def test_outside_a_job_the_script_prints_its_usage() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", str(SCRIPT), "run.toml"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "this is for sbatch: sbatch [options of sbatch] scripts/train.slurm CONFIG [options]" in done.stderr
