"""Pack the parts with datatrove's executors: on this machine, with Slurm, or with Ray."""

import dataclasses
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import multiprocess
from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from exact_titan.documents.sources import Source
from exact_titan.documents.token_files import TokenFile
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.packing.corpus import NO_LIMIT, Limit
from exact_titan.packing.part import pack_part
from exact_titan.packing.parts import PackOptions, Part
from exact_titan.packing.progress import Progress, ProgressCounts, Tally
from exact_titan.packing.selection import FinishedParts
from exact_titan.packing.work_folder import WorkFolder
from exact_titan.slurm_options import SlurmOptions

# datatrove's executors log every task. This module prints the messages for users instead.
logger.disable("datatrove")

CORES = len(os.sched_getaffinity(0))
MOST_SLURM_JOBS = 1000
"""Slurm's MaxArraySize is 1001 by default."""

POLL_SECONDS = 2.0

PROCESS_BYTES = 2**23
"""The start of another process pays off for this number of bytes."""


@dataclass(frozen=True)
class Execution:
    """The executor of the parts and its options. The packed dataset does not depend on the execution.

    Args:
        executor: ``local``, ``slurm`` or ``ray``.
        workers: local: number of cores. slurm, ray: number of tasks that run at the same time. Default: all.
        tasks: number of tasks. The parts are distributed over the tasks. Default: one task for each part.
        slurm: options of the Slurm jobs. Ray uses the number of cores and the memory of these options.
    """

    executor: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = None
    tasks: int | None = None
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def __post_init__(self) -> None:
        for name in ("workers", "tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}: give 1 or more")
        if self.executor == "slurm" and shutil.which("sbatch") is None:
            raise InputError("--executor slurm: there is no sbatch on this machine: run the command on a login node")


@dataclass(frozen=True)
class PackingJob:
    """The input of the tasks of one executor run. The file ``job.pickle`` holds the job.

    Attributes:
        parts: the parts to pack.
        opened: the opened sources, by index.
        limits: the limits of the sources, by index. A source without an entry has no limit.
        all_parts: all parts of the corpus, in their order.
    """

    parts: list[Part]
    opened: dict[int, Source | TokenFile]
    limits: dict[int, Limit]
    all_parts: list[Part]

    def limit(self, part: Part) -> Limit:
        """Return the limit of the part's source."""
        return self.limits.get(part.source, NO_LIMIT)


class PackParts(PipelineStep):
    """The datatrove step of a task: pack the task's share of the parts, one after another.

    Args:
        work: the work folder.
        job_file: file of the :class:`PackingJob`.
        threads: number of the tokenizer's threads.
    """

    name = "packer"
    type = "PACKER"

    def __init__(self, work: WorkFolder, job_file: Path, threads: int) -> None:
        super().__init__()
        self.work, self.job_file, self.threads = work, job_file, threads
        self.cwd = os.getcwd()

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pack the parts ``rank``, ``rank + world_size``, …. Skip a part if earlier parts reach the source's limit."""
        # Paths may be relative, and an older pool of workers may have another working directory.
        os.chdir(self.cwd)
        if multiprocess.parent_process() is not None:
            # Ctrl-C reaches all processes of the terminal. The parent process ends the workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with self.job_file.open("rb") as file:
            job: PackingJob = pickle.load(file)
        tally = Tally(self.work.tallies)
        finished = FinishedParts(job.all_parts, self.work.parts)
        tokenizer = _tokenizer(job.all_parts[0].options)
        for part in job.parts[rank::world_size]:
            if finished.are_enough(part, job.limit(part)):
                continue
            try:
                pack_part(part, job.opened, tokenizer, self.work.parts, workers=self.threads, tally=tally)
            except InputError as error:
                (self.work.errors / f"{part.number:08d}").write_text(str(error), encoding="utf-8")
                raise
            tally.finish_part(part.bytes)
            result = finished.result(part)
            assert result is not None
            self.stat_update("documents", value=result.documents, unit="part")
            self.stat_update("tokens", value=result.tokens, unit="part")
        yield from ()


def pack_parts(job: PackingJob, work: WorkFolder, execution: Execution) -> None:
    """Pack the unfinished parts of the job, and show the progress.

    Raises:
        InputError: with the error of the first part that cannot be packed, or if tasks ended without an error message.
    """
    work.part_count = len(job.all_parts)
    finished = FinishedParts(job.all_parts, work.parts)

    def missing() -> list[Part]:
        return [
            part
            for part in job.parts
            if finished.result(part) is None and not finished.are_enough(part, job.limit(part))
        ]

    runs = {"local": _run_locally, "slurm": _run_on_slurm, "ray": _run_on_ray}
    slurm_job = _SlurmJob(work)
    if execution.executor == "slurm" and slurm_job.is_active():
        with Progress(work.tallies, _bytes(job.parts), ProgressCounts()):
            slurm_job.wait()
    work.begin()
    parts = missing()
    if not parts:
        return
    finished_parts = [part for part in job.parts if part not in parts]
    results = [result for result in map(finished.result, finished_parts) if result is not None]
    before = ProgressCounts(
        documents=sum(result.documents for result in results),
        tokens=sum(result.tokens for result in results),
        read=_bytes(finished_parts),
    )
    folder = work.runs / f"{time.time_ns()}"
    folder.mkdir()
    job_file = folder / "job.pickle"
    job_file.write_bytes(pickle.dumps(dataclasses.replace(job, parts=parts)))
    tasks = min(len(parts), execution.tasks or len(parts))
    with Progress(work.tallies, _bytes(job.parts), before):
        hint = runs[execution.executor](execution, work, job_file, tasks, _bytes(parts))
    if (error := work.error()) is not None:
        raise InputError(error)
    if left := missing():
        raise InputError(f"{len(left)} of {len(job.parts)} parts were not packed: {hint}")


def _tokenizer(options: PackOptions) -> DocumentTokenizer:
    tokenizer = DocumentTokenizer(Path(options.tokenizer), options.eos_token, options.special_tokens)
    if tokenizer.record.sha256 != options.tokenizer_sha256:
        raise InputError(f"--tokenizer {options.tokenizer} has changed since packing began: start again")
    return tokenizer


def _bytes(parts: Sequence[Part]) -> int:
    return sum(part.bytes for part in parts)


def _run_locally(execution: Execution, work: WorkFolder, job_file: Path, tasks: int, size: int) -> str:
    cores = execution.workers or CORES
    processes = max(1, min(cores, tasks, size // PROCESS_BYTES))
    step = PackParts(work, job_file, threads=max(1, cores // processes))
    # The fork server imports this module once. Every worker process is forked from the fork server.
    multiprocess.get_context("forkserver").set_forkserver_preload([__name__])
    LocalPipelineExecutor([step], tasks=tasks, workers=processes, logging_dir=str(job_file.parent)).run()
    return "run the same command again to resume"


def _run_on_ray(execution: Execution, work: WorkFolder, job_file: Path, tasks: int, _size: int) -> str:
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray: ray is not installed: pip install 'exact-titan[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    options = execution.slurm
    RayPipelineExecutor(
        [PackParts(work, job_file, threads=options.cpus_per_task)],
        tasks=tasks,
        workers=execution.workers or tasks,
        logging_dir=str(job_file.parent),
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
    ).run()
    return f"see the logs in {job_file.parent / 'logs'}, and run the same command again to resume"


def _run_on_slurm(execution: Execution, work: WorkFolder, job_file: Path, tasks: int, _size: int) -> str:
    options = execution.slurm
    executor = _SlurmExecutor(
        [PackParts(work, job_file, threads=options.cpus_per_task)],
        tasks=tasks,
        tasks_per_job=-(-tasks // MOST_SLURM_JOBS),
        workers=execution.workers or -1,
        time=options.time,
        partition=options.partition or "",
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        qos=None,
        job_name=f"pack-{work.path.name.strip('.').removesuffix('.partial')}",
        sbatch_args=dict(_sbatch_option(text) for text in options.sbatch),
        # The job finds the programs of this Python environment, also if the environment is not activated.
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        logging_dir=str(job_file.parent.absolute()),
    )
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"--executor slurm: sbatch refused the job, exit code {error.returncode}, see above"
        ) from error
    slurm_job = _SlurmJob(work)
    slurm_job.record(str(executor.job_id))
    print(f"packing: Slurm job {executor.job_id}, {tasks} tasks", file=sys.stderr, flush=True)
    slurm_job.wait()
    logs = executor.slurm_logs_folder
    return f"the Slurm job has ended, see its logs in {logs}, and run the same command again to resume"


def _sbatch_option(text: str) -> tuple[str, str]:
    name, equals, value = text.removeprefix("--").partition("=")
    if not name or (equals and not value):
        raise InputError(f"--slurm.sbatch {text}: write NAME=VALUE, such as account=ml")
    return name, value


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor with two changes.

    Without the option ``partition``, the job goes to the cluster's default partition. The executor does not submit
    datatrove's second job, which would merge statistics.
    """

    def get_sbatch_args(self, max_array: int = 1) -> dict:
        arguments = super().get_sbatch_args(max_array)
        return {name: value for name, value in arguments.items() if name != "partition" or value}

    def launch_merge_stats(self) -> None:
        pass


class _SlurmJob:
    """The Slurm job that packs the parts.

    The work folder keeps the number of the job. A later command waits for the job.
    """

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._file = work.path / "slurm-job"

    def record(self, number: str) -> None:
        """Record the number of a new job."""
        self._file.write_text(number, encoding="utf-8")

    def is_active(self) -> bool:
        """Return whether a recorded job has not ended."""
        if not self._file.is_file():
            return False
        command = ["squeue", "--noheader", "--jobs", self._file.read_text(encoding="utf-8"), "--format", "%i"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        # Slurm forgets a job some time after its end: "Invalid job id". If the controller does not answer, the job may
        # still run.
        return bool(found.stdout.strip()) or (found.returncode != 0 and "Invalid job id" not in found.stderr)

    def wait(self) -> None:
        """Wait until all tasks have ended. If a task fails, cancel the other tasks."""
        while self.is_active():
            if self._work.error() is not None:
                subprocess.run(["scancel", self._file.read_text(encoding="utf-8")], check=False)
            time.sleep(POLL_SECONDS)
        self._file.unlink(missing_ok=True)
