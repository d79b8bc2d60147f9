"""This machine for a study: the processes that complete the configs and train the runs.

- Without an accelerator, a run of one process is a fork of a warm process (:mod:`exact_titan.launch.warm`).
- Other runs are ordinary `exact-titan train` commands (:mod:`exact_titan.launch.background`), with their own GPUs.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.launch import background
from exact_titan.launch.arguments import tokens
from exact_titan.launch.toml_settings import read_tree
from exact_titan.launch.warm import WarmProcesses, in_new_process, number_of_devices
from exact_titan.runs.run_record import RunRecord
from exact_titan.study.plan import Planned
from exact_titan.study.results import stage_runs
from exact_titan.study.runner import Process, Start
from exact_titan.study.spec import Study


def run_argv(one: Planned, *, where: str) -> list[str]:
    """Return the arguments of ``exact_titan.train`` for a run.

    Raises:
        InputError: naming the file of the study, the stage, the arm and the option.
    """
    arm = f", arm {one.run.arm}" if one.run.arm else ""
    recipe, settings = read_tree(one.options, where=f"{where}, stage {one.run.stage}{arm}")
    return ["--config", recipe, *tokens(settings, recipe)]


Launch = Callable[[list[str], Path, dict[str, str]], Process]
"""Starts a run: arguments of ``exact_titan.train``, the log file to append to, and further environment variables."""


class Machine:
    """This machine: completes the configs of a study, and starts its runs.

    Args:
        study: the study.
        where: the file of the study, for messages.
        launch: starts every run in place of the two ways above. The configs are then completed in this process. For a
            program that has prepared this process, and must prepare its runs.
    """

    def __init__(self, study: Study, where: str, *, launch: Launch | None = None) -> None:
        self._study, self._where, self._launch = study, where, launch
        self._warm: WarmProcesses | None = None
        self._devices = 0

    def complete(self, planned: list[Planned]) -> list[RunRecord]:
        """Complete the configs of runs (:func:`exact_titan.study_configs.complete_records`) in another process."""
        complete = functools.partial(_complete_records, planned, nproc=self._study.nproc, where=self._where)
        if self._launch is not None:
            self._devices = number_of_devices()
            return complete()
        warm = self._warm_processes()
        print("Loading torch and torchtitan", flush=True)
        self._devices = warm.call(number_of_devices)
        return in_new_process(complete) if self._devices else warm.call(complete)

    def starter(self, planned: list[Planned]) -> tuple[Start, int]:
        """Return the function that starts a run, and the number of runs at one time."""
        parallel, devices = places(self._study, runs=len(planned), devices=self._devices)
        print(
            f"{len(planned)} runs, {parallel} at a time, {self._study.nproc} "
            f"process{'es' if self._study.nproc > 1 else ''} each",
            flush=True,
        )
        running: list[Process | None] = [None] * parallel

        def start(one: Planned, log: Path) -> Process:
            place = next(k for k, process in enumerate(running) if process is None or process.poll() is not None)
            argv, environment = run_argv(one, where=self._where), {}
            if self._devices:
                environment["CUDA_VISIBLE_DEVICES"] = devices[place]
            if "OMP_NUM_THREADS" not in os.environ:
                environment["OMP_NUM_THREADS"] = str(self._threads(parallel))
            process: Process
            if self._launch is not None:
                process = self._launch(argv, log, environment)
            elif self._devices or self._study.nproc > 1:
                process = background.start(argv, log, environment, nproc=self._study.nproc)
            else:
                process = self._warm_processes().start(argv, log, environment)
            running[place] = process
            return process

        return start, parallel

    def _warm_processes(self) -> WarmProcesses:
        if self._warm is None:
            parallel, _ = places(self._study, runs=_number_of_runs(self._study), devices=0)
            self._warm = WarmProcesses(threads=self._threads(parallel))
        return self._warm

    def _threads(self, parallel: int) -> int:
        return max(1, len(os.sched_getaffinity(0)) // (parallel * self._study.nproc))


def places(study: Study, *, runs: int, devices: int) -> tuple[int, list[str]]:
    """Return the number of runs at one time, and ``CUDA_VISIBLE_DEVICES`` for each of them.

    Without ``parallel`` in the study, every run has its own accelerators, or its own cores on a machine without an
    accelerator. With ``parallel``, several runs may share an accelerator.

    Args:
        study: the study.
        runs: number of runs of the study.
        devices: number of accelerators.

    Raises:
        InputError: if a run needs more accelerators than the machine has.
    """
    if 0 < devices < study.nproc:
        raise InputError(f"nproc is {study.nproc}, but this machine has {devices} GPUs: each process needs its own GPU")
    own = (devices or len(os.sched_getaffinity(0))) // study.nproc
    parallel = max(1, min(study.parallel or own, runs))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")][:devices] if given else [str(k) for k in range(devices)]
    visible = (
        [",".join(names[(place * study.nproc + k) % devices] for k in range(study.nproc)) for place in range(parallel)]
        if devices
        else []
    )
    return parallel, visible


def _complete_records(planned: list[Planned], *, nproc: int, where: str) -> list[RunRecord]:
    from exact_titan.study_configs import complete_records  # this import loads torch

    return complete_records(planned, nproc=nproc, where=where)


def _number_of_runs(study: Study) -> int:
    return sum(len(stage_runs(study, Path(), number)) for number in range(len(study.stages)))
