"""The commands of ``exact-titan study``."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from exact_titan.errors import InputError
from exact_titan.launch import configs
from exact_titan.launch.arguments import read_tree, tokens
from exact_titan.launch.command import COMMAND, check_environment

if TYPE_CHECKING:
    from exact_titan.launch.warm import WarmProcesses
    from exact_titan.study.plan import Planned
    from exact_titan.study.runner import Process, Start
    from exact_titan.study.spec import Study


def run(study: Annotated[Positional[str], arg(metavar="STUDY")], *, out: Path) -> int:
    """Train the arms of a study, on the same data from the same start. The same command resumes the study.

    The exit code is 75 after Ctrl-C or SIGTERM: the running runs have saved, and the same command resumes them.

    Example: exact-titan study run studies/smollm2.toml --out outputs/smollm2-study

    Args:
        study: STUDY.toml, or the name of a study that the package ships: smollm2 or paper-llama-3.1-8b.
        out: Folder of the study. A folder of another study is refused.
    """
    from exact_titan.runs.exit_codes import ExitCode
    from exact_titan.study import session
    from exact_titan.study.plan import plan, representatives
    from exact_titan.study.spec import read_study

    check_environment(os.environ)
    file = configs.find_study(study)
    read, where = read_study(file), str(file)
    os.environ[COMMAND] = shlex.join(["exact-titan", "study", "run", study, "--out", str(out)])
    for one in representatives(plan(read, out, where=where)).values():  # before the import of torch
        run_argv(one, where=where)
    machine = Machine(read, where)
    code = session.run(read, out, where=where, complete=machine.complete, machine=machine.starter)
    if code == ExitCode.SAVED:
        print(f"stopped; the same command resumes the study: {os.environ[COMMAND]}", flush=True)
    return code


def run_argv(one: "Planned", *, where: str) -> list[str]:
    """Return the arguments of ``exact_titan.train`` for a run.

    Raises:
        InputError: naming the file of the study, the stage, the arm and the option.
    """
    arm = f", arm {one.run.arm}" if one.run.arm else ""
    recipe, settings = read_tree(one.options, where=f"{where}, stage {one.run.stage}{arm}")
    return ["--config", recipe, *tokens(settings, recipe)]


class Machine:
    """This machine: completes the configs of a study, and starts its runs.

    Args:
        study: the study.
        where: the file of the study, for messages.
    """

    def __init__(self, study: "Study", where: str) -> None:
        self._study, self._where = study, where
        self._warm: WarmProcesses | None = None
        self._devices = 0

    def complete(self, planned: "list[Planned]"):
        """Complete the configs of runs in another process (:func:`exact_titan.study_configs.complete_records`)."""
        from exact_titan import study_configs
        from exact_titan.launch.warm import in_new_process, number_of_devices

        warm = self._warm_processes()
        print("Loading torch and torchtitan", flush=True)
        self._devices = warm.call(number_of_devices)
        call = in_new_process if self._devices else warm.call
        return call(study_configs.complete_records, planned, nproc=self._study.nproc, where=self._where)

    def starter(self, planned: "list[Planned]") -> "tuple[Start, int]":
        """Return the function that starts a run, and the number of runs at one time."""
        parallel, devices = places(self._study, runs=len(planned), devices=self._devices)
        print(
            f"{len(planned)} runs, {parallel} at a time, {self._study.nproc} "
            f"process{'es' if self._study.nproc > 1 else ''} each",
            flush=True,
        )
        running: list[Process | None] = [None] * parallel

        def start(one: "Planned", log: Path) -> "Process":
            from exact_titan.launch import background

            place = next(k for k, process in enumerate(running) if process is None or process.poll() is not None)
            argv = run_argv(one, where=self._where)
            process: Process
            if self._devices or self._study.nproc > 1:
                visible = {"CUDA_VISIBLE_DEVICES": devices[place]} if self._devices else {}
                threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads(parallel)))}
                process = background.start(argv, log, visible | threads, nproc=self._study.nproc)
            else:
                process = self._warm_processes().start(argv, log, {})
            running[place] = process
            return process

        return start, parallel

    def _warm_processes(self) -> "WarmProcesses":
        if self._warm is None:
            from exact_titan.launch.warm import WarmProcesses

            parallel, _ = places(self._study, runs=_number_of_runs(self._study), devices=0)
            self._warm = WarmProcesses(threads=self._threads(parallel))
        return self._warm

    def _threads(self, parallel: int) -> int:
        return max(1, len(os.sched_getaffinity(0)) // (parallel * self._study.nproc))


def places(study: "Study", *, runs: int, devices: int) -> tuple[int, list[str]]:
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


def _number_of_runs(study: "Study") -> int:
    from exact_titan.study.results import stage_runs

    return sum(len(stage_runs(study, Path(), number)) for number in range(len(study.stages)))


COMMANDS: dict[str, Callable[..., int | None]] = {"run": run}
