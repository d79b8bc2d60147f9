"""Pack the parts with datatrove's executors for clusters: Slurm and Ray.

A task packs several parts, one after another. The work folder has a file for every part that a task has begun and not
finished (:attr:`WorkFolder.begun`). After the end of all tasks, these files name the parts of the tasks that were
killed.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from exact_titan.errors import InputError
from exact_titan.packing.parts import Part
from exact_titan.packing.tasks import PackingJob, PartPacker
from exact_titan.packing.work_folder import WorkFolder
from exact_titan.slurm_options import SlurmOptions
from exact_titan.system.atomic_files import write_atomically

# datatrove's executors log every task. This module prints the messages for users instead.
logger.disable("datatrove")

MOST_SLURM_JOBS = 1000
"""Slurm's MaxArraySize is 1001 by default."""

POLL_SECONDS = 2.0
LOG_BYTES = 2**16
"""Number of last bytes of a task's log that may hold Slurm's message."""


class PackParts(PipelineStep):
    """The datatrove step of a task: pack the task's share of the parts, one after another.

    Args:
        work: the work folder.
        job_file: file of the :class:`PackingJob`.
        threads: number of the tokenizer's threads.
        logs: folder of the logs of the Slurm tasks. None on Ray.
    """

    name = "packer"
    type = "PACKER"

    def __init__(self, work: WorkFolder, job_file: Path, threads: int, logs: Path | None = None) -> None:
        super().__init__()
        self.work, self.job_file, self.threads, self.logs = work, job_file, threads, logs
        self.cwd = os.getcwd()

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pack the parts ``rank``, ``rank + world_size``, …. Skip a part if earlier parts reach the source's limit."""
        os.chdir(self.cwd)  # paths may be relative
        job = PackingJob.read(self.job_file)
        packer = PartPacker(job, self.work, self.threads)
        for part in job.parts[rank::world_size]:
            begun = self.work.begun / f"{part.number:08d}"
            begun.write_text(self._log(), encoding="utf-8")
            try:
                result = packer.pack(part)
            except Exception as error:
                text = str(error)
                if not isinstance(error, InputError):
                    text = (
                        f"{job.name(part)}: {type(error).__name__}: {error}: see {self._log() or self.job_file.parent}"
                    )
                write_atomically(self.work.errors / f"{part.number:08d}", text)
                raise
            begun.unlink(missing_ok=True)
            if result is not None:
                self.stat_update("documents", value=result.documents, unit="part")
                self.stat_update("tokens", value=result.tokens, unit="part")
        yield from ()

    def _log(self) -> str:
        """Return the path of this task's log, or an empty string."""
        array = [os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK")]
        return str(self.logs / f"{'_'.join(array)}.out") if self.logs is not None and all(array) else ""


def killed_tasks(job: PackingJob, parts: Sequence[Part], work: WorkFolder) -> str | None:
    """Return the message about the tasks that were killed while they packed a part, or None.

    Args:
        job: the job. All its tasks have ended.
        parts: the parts that are not finished.
        work: the work folder.
    """
    begun = [part for part in parts if (work.begun / f"{part.number:08d}").is_file()]
    if not begun:
        return None
    log = (work.begun / f"{begun[0].number:08d}").read_text(encoding="utf-8")
    others = f" (and the tasks of {len(begun) - 1} more parts)" if len(begun) > 1 else ""
    cause = _last_error(Path(log)) if log else ""
    return (
        f"the task that packed {job.name(begun[0])} was killed{others}{f', see {log}' if log else ''}{cause}: often by "
        "the out-of-memory killer or the time limit: give the tasks more --slurm.mem-per-cpu-gb or --slurm.time"
    )


def _last_error(log: Path) -> str:
    """Return Slurm's last message in a task's log, in brackets, or an empty string."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LOG_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    messages = re.findall(r"(?:slurmstepd|srun)[^\n]*?: error: ([^\n]*)", text)
    return f" ({messages[-1].strip(' *')})" if messages else ""


def run_on_ray(options: SlurmOptions, work: WorkFolder, job_file: Path, tasks: int, workers: int | None) -> str:
    """Pack the parts with Ray, and wait for the end of all tasks. Return where the user finds more about an error.

    Args:
        options: number of cores and memory of a task.
        work: the work folder.
        job_file: file of the job.
        tasks: number of tasks.
        workers: number of tasks that run at the same time. None: all.

    Raises:
        InputError: if ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray: ray is not installed: pip install 'exact-titan[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    _RayExecutor(
        [PackParts(work, job_file, threads=options.cpus_per_task)],
        tasks=tasks,
        workers=workers or tasks,
        logging_dir=str(job_file.parent.absolute()),
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
    ).run()
    return f"see the logs in {job_file.parent / 'logs'}"


class _RayExecutor(RayPipelineExecutor):
    """datatrove's Ray executor with one Ray task for every task.

    datatrove's own ``run`` starts a pool of processes inside an actor. The pool waits for ever for a killed process.
    """

    def run(self) -> None:
        import ray

        options = {
            "num_cpus": self.cpus_per_task,
            "memory": int(self.mem_per_cpu_gb * self.cpus_per_task * 2**30),
            "max_retries": 0,
        }
        run_task = ray.remote(**options)(_run_ray_task)
        executor = ray.put(self)
        waiting = list(range(self.tasks))
        running: list[ray.ObjectRef] = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                running.append(run_task.remote(executor, waiting.pop(0)))
            done, running = ray.wait(running)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError:
                # The task has written its error. The other parts would be packed in vain.
                for task in running:
                    ray.cancel(task, force=True)
                return
            except ray.exceptions.RayError:
                pass  # a killed task; its part is in WorkFolder.begun, and the other tasks finish their parts


def _run_ray_task(executor: RayPipelineExecutor, rank: int) -> None:
    executor._run_for_rank(rank)


def run_on_slurm(options: SlurmOptions, work: WorkFolder, job_file: Path, tasks: int, workers: int | None) -> str:
    """Pack the parts with a Slurm job, and wait for the end of all tasks.

    Return where the user finds more about an error.

    Args:
        options: options of the job.
        work: the work folder.
        job_file: file of the job's input.
        tasks: number of tasks.
        workers: number of tasks that run at the same time. None: all.

    Raises:
        InputError: if sbatch refuses the job.
    """
    folder = job_file.parent.absolute()
    logs = folder / "slurm_logs"
    executor = _SlurmExecutor(
        [PackParts(work, job_file, threads=options.cpus_per_task, logs=logs)],
        tasks=tasks,
        tasks_per_job=-(-tasks // MOST_SLURM_JOBS),
        workers=workers or -1,
        time=options.time,
        partition=options.partition or "",
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.mem_per_cpu_gb,
        qos=None,
        job_name=f"pack-{work.path.name.strip('.').removesuffix('.partial')}",
        sbatch_args=dict(_sbatch_option(text) for text in options.sbatch),
        # The job finds the programs of this Python environment, also if the environment is not activated.
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        logging_dir=str(folder),
        slurm_logs_folder=str(logs),
    )
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"--executor slurm: sbatch refused the job, exit code {error.returncode}, see above"
        ) from error
    slurm_job = SlurmJob(work)
    slurm_job.record(str(executor.job_id))
    print(f"packing: Slurm job {executor.job_id}, {tasks} tasks", file=sys.stderr, flush=True)
    slurm_job.wait()
    return f"the Slurm job has ended, see its logs in {logs}"


def _sbatch_option(text: str) -> tuple[str, str]:
    name, equals, value = text.removeprefix("--").partition("=")
    if not name or (equals and not value):
        raise InputError(f"--slurm.sbatch {text}: write NAME=VALUE, such as account=ml")
    return name, value


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor with two changes.

    Without the option ``partition``, the job goes to the cluster's default partition. The executor does not submit
    datatrove's second job. That job would merge statistics.
    """

    def get_sbatch_args(self, max_array: int = 1) -> dict:
        arguments = super().get_sbatch_args(max_array)
        return {name: value for name, value in arguments.items() if name != "partition" or value}

    def launch_merge_stats(self) -> None:
        pass


class SlurmJob:
    """The Slurm job that packs the parts.

    The work folder keeps the number of the job. A later command waits for the job.
    """

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._file = work.path / "slurm-job"

    def record(self, number: str) -> None:
        """Record the number of a new job."""
        write_atomically(self._file, number)

    def is_active(self) -> bool:
        """Return whether a recorded job has not ended."""
        if not self._file.is_file():
            return False
        command = ["squeue", "--noheader", "--jobs", self._number(), "--format", "%i"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        # Slurm forgets a job some time after its end: "Invalid job id". If the controller does not answer, the job may
        # still run.
        return bool(found.stdout.strip()) or (found.returncode != 0 and "Invalid job id" not in found.stderr)

    def _number(self) -> str:
        """Return the recorded number.

        Raises:
            InputError: if the file holds something else. ``scancel`` would obey an option in the file.
        """
        number = self._file.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"[0-9]{1,18}", number):
            raise InputError(
                f"{self._file} holds {number!r:.60}, not the number of a Slurm job: write the number into it"
            )
        return number

    def wait(self) -> None:
        """Wait until all tasks have ended. If a task fails, cancel the other tasks."""
        while self.is_active():
            if self._work.error() is not None:
                subprocess.run(["scancel", self._number()], check=False)
            time.sleep(POLL_SECONDS)
        self._file.unlink(missing_ok=True)
