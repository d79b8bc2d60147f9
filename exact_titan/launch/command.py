"""``exact-titan train [--nproc N] CONFIG [--section.option VALUE …]``: check the arguments, and start the processes."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.launch import arguments, help_pages

COMMAND = "EXACT_TITAN_COMMAND"
"""The environment variable that tells the ranks the user's command."""


@dataclass(frozen=True)
class Launch:
    """A launch on this machine.

    Attributes:
        arguments: the checked arguments of the run.
        argv: the same arguments as ``exact_titan.train`` takes them.
        nproc: number of processes. None: the number of GPUs, or 1.
    """

    arguments: arguments.Arguments
    argv: list[str]
    nproc: int | None


def main(argv: list[str]) -> int:
    """Start the run and return its exit code (:class:`~exact_titan.runs.exit_codes.ExitCode`), 1 after a crash.

    Raises:
        InputError: naming the option, the file or the environment variable. No process has started then.
    """
    launch = read(argv)
    if launch.arguments.help:
        print(help_pages.page(launch.arguments, help_pages.TRAIN))
        return 0
    check_environment(os.environ)

    from exact_titan.launch import agent

    # The run's summary shows the command that resumes the run.
    os.environ[COMMAND] = shlex.join(["exact-titan", "train", *argv])
    return agent.run(launch.argv, nproc=launch.nproc, dump_folder=launch.arguments.dump_folder)


def read(argv: list[str]) -> Launch:
    """Return the launch of ``[--nproc N] CONFIG [--section.option VALUE …]``. ``--config CONFIG`` works, too.

    Raises:
        InputError: naming the option or the file.
    """
    nproc, rest = _take_nproc(argv)
    flags = (*arguments.HELP, *arguments.HELP_ALL)
    named = any(argument == "--config" or argument.startswith("--config=") for argument in rest)
    first = next((argument for argument in rest if argument not in flags), None)
    if first is not None and not named:
        if first.startswith("-"):
            raise InputError(
                f"train: {first} stands where CONFIG belongs: give a TOML file, a recipe or a name of `exact-titan "
                f"configs` before the options"
            )
        rest.remove(first)
        rest = ["--config", first, *rest]
    elif first is None and not any(argument in flags for argument in rest):
        raise InputError("train: CONFIG is missing: give a TOML file, a recipe or a name of `exact-titan configs`")
    return Launch(arguments.read(rest), rest, nproc)


def _take_nproc(argv: list[str]) -> tuple[int | None, list[str]]:
    nproc: int | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--nproc", "--nproc_per_node", "--nproc-per-node"):
            rest.append(word)
            continue
        text = value if equals else next(words, "")
        try:
            nproc = int(text)
        except ValueError:
            raise InputError(f"--nproc is {text!r}: it must be a number of processes") from None
        if nproc < 1:
            raise InputError(f"--nproc is {nproc}: it must be 1 or more")
    return nproc, rest


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse to start processes inside a launcher that has already started processes.

    Raises:
        InputError: naming the launcher.
    """
    what = ""
    if "TORCHELASTIC_RUN_ID" in environment or "LOCAL_RANK" in environment:
        what = "torchrun or another launcher has started this process (LOCAL_RANK is set)"
    elif environment.get("WORLD_SIZE", "1") != "1":
        what = f"WORLD_SIZE is {environment['WORLD_SIZE']}"
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        what = f"srun has started this command {environment['SLURM_STEP_NUM_TASKS']} times"
    if what:
        if environment.get("RANK", "0") != "0" or environment.get("SLURM_PROCID", "0") != "0":
            time.sleep(2)  # torchrun ends the first rank, which prints the error, after the exit of another rank
            sys.exit(2)
        raise InputError(
            f"{what}, and exact-titan train starts all processes of one machine itself: start it once, or use "
            f"torchrun -m exact_titan.train --config …"
        )
