"""Pack the parts on this machine, with Slurm, or with Ray."""

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exact_titan.errors import InputError
from exact_titan.packing.local_workers import pack_with_workers
from exact_titan.packing.parts import Part
from exact_titan.packing.progress import Progress, ProgressCounts
from exact_titan.packing.selection import FinishedParts
from exact_titan.packing.tasks import PackingJob, PartPacker
from exact_titan.packing.work_folder import WorkFolder
from exact_titan.slurm_options import SlurmOptions

CORES = len(os.sched_getaffinity(0))

PROCESS_BYTES = 2**23
"""The start of another process pays off for this number of bytes."""

WORKER_BYTES = 2**26
"""From this size on, a single process also is a worker. The command then reports the end of the process."""


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


def pack_parts(job: PackingJob, work: WorkFolder, execution: Execution) -> None:
    """Pack the unfinished parts of the job, and show the progress.

    Raises:
        InputError: with the error of a part that cannot be packed, or if a worker or a task was killed.
    """
    work.part_count = len(job.all_parts)
    finished = FinishedParts(job.all_parts, work.parts)

    def missing() -> list[Part]:
        return [
            part
            for part in job.parts
            if finished.result(part) is None and not finished.are_enough(part, job.limit(part))
        ]

    if execution.executor == "slurm":
        _wait_for_earlier_job(job, work)
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
    rest = dataclasses.replace(job, parts=parts)
    rest.write(job_file)
    tasks = min(len(parts), execution.tasks or len(parts))
    with Progress(work.tallies, _bytes(job.parts), before):
        if execution.executor == "local":
            _run_locally(execution, rest, work, job_file, tasks)
            return
        hint = _run_on_cluster(execution, work, job_file, tasks)
    if (error := work.error()) is not None:
        raise InputError(error)
    if left := missing():
        raise InputError(_unfinished(rest, left, work, hint))


def _bytes(parts: Sequence[Part]) -> int:
    return sum(part.bytes for part in parts)


def _run_locally(execution: Execution, job: PackingJob, work: WorkFolder, job_file: Path, tasks: int) -> None:
    cores = execution.workers or CORES
    size = _bytes(job.parts)
    processes = max(1, min(cores, tasks, size // PROCESS_BYTES))
    threads = max(1, cores // processes)
    if processes == 1 and size < WORKER_BYTES:
        packer = PartPacker(job, work, threads)
        for part in job.parts:
            packer.pack(part)
        return
    try:
        pack_with_workers(job, job_file, work, processes, threads)
    finally:
        work.remove_unfinished()  # of workers that were killed


def _run_on_cluster(execution: Execution, work: WorkFolder, job_file: Path, tasks: int) -> str:
    """Pack the parts with Slurm or Ray. Return where the user finds more about an error."""
    from exact_titan.packing.clusters import run_on_ray, run_on_slurm  # the import of datatrove takes a second

    run = run_on_slurm if execution.executor == "slurm" else run_on_ray
    return run(execution.slurm, work, job_file, tasks, execution.workers)


def _unfinished(job: PackingJob, left: list[Part], work: WorkFolder, hint: str) -> str:
    from exact_titan.packing.clusters import killed_tasks

    cause = killed_tasks(job, left, work) or hint
    return f"{len(left)} of {len(job.parts)} parts were not packed: {cause}, and run the same command again to resume"


def _wait_for_earlier_job(job: PackingJob, work: WorkFolder) -> None:
    """Wait for the Slurm job of an earlier command."""
    from exact_titan.packing.clusters import SlurmJob

    slurm_job = SlurmJob(work)
    if slurm_job.is_active():
        with Progress(work.tallies, _bytes(job.parts), ProgressCounts()):
            slurm_job.wait()
