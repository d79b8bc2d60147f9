"""The runs of a study: the options of each run, and the run that each run starts from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.study.results import ArmRun, stage_runs
from exact_titan.study.spec import Study

_OWN = {
    "dump_folder": "the folder of --out has a folder for every run",
    "export": "`exact-titan export FOLDER_OF_A_RUN --out NEW` exports a run of the study",
    "dataloader.seed": "seeds of the study sets the order of the data, for all arms alike",
    "debug.seed": "starts of the study sets the seed of the start weights, for all arms alike",
    "start_from": "a stage starts from the stage before it, and all arms of the first stage have one start",
}
"""Options that the study sets, and the way to set them."""


@dataclass(frozen=True)
class Planned:
    """A run before its training.

    Attributes:
        run: the run.
        options: the options of the run by name, such as ``training.steps``, with the values of the TOML.
        previous: the run whose last weights are the start. None: the run belongs to the first stage.
    """

    run: ArmRun
    options: dict[str, Any]
    previous: ArmRun | None


def plan(study: Study, folder: Path, *, where: str) -> list[Planned]:
    """Return all runs of a study, stage by stage. In a stage, the arms of one start and one seed follow each other.

    Args:
        study: the study.
        folder: the folder of the study.
        where: the file of the study, for messages.

    Raises:
        InputError: naming the option, if the study's own options are set, or if two arms have the same options.
    """
    _check_own_options(study, where)
    planned: list[Planned] = []
    for number, stage in enumerate(study.stages):
        common = flat(study.options) | flat(stage.options)
        if number:
            common.pop("start_from", None)
        runs = stage_runs(study, folder, number)
        order = {arm: place for place, arm in enumerate(study.arms)}
        for run in sorted(runs, key=lambda run: (run.start, run.seed or 0, order.get(run.arm, 0))):
            previous = _previous(study, folder, run, number)
            own = {
                "dump_folder": str(run.folder),
                "dataloader.seed": run.start if run.seed is None else run.seed,
                "debug.seed": run.start,
                **({"start_from": str(previous.folder)} if previous is not None else {}),
            }
            planned.append(Planned(run, {**common, **flat(study.arms.get(run.arm, {})), **own}, previous))
    return planned


def representatives(planned: list[Planned]) -> dict[tuple[str, str], Planned]:
    """Return one run for every stage and arm. The other runs of the arm differ only in start, seed and folder."""
    found: dict[tuple[str, str], Planned] = {}
    for one in planned:
        found.setdefault((one.run.stage, one.run.arm), one)
    return found


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of options by name. Dashes in names become underscores, as on the command line."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = prefix + key.replace("-", "_")
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _previous(study: Study, folder: Path, run: ArmRun, number: int) -> ArmRun | None:
    if number == 0:
        return None
    for one in stage_runs(study, folder, number - 1):
        if one.start == run.start and (one.seed is None or (one.arm, one.seed) == (run.arm, run.seed)):
            return one
    raise AssertionError(f"{run} has no run before it")


def _trees(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every table of options with its name in the TOML."""
    yield "options", flat(study.options)
    for stage in study.stages:
        yield f"the stage {stage.name}", flat(stage.options)
    for arm, options in study.arms.items():
        yield f"the arm {arm}", flat(options)


def _check_own_options(study: Study, where: str) -> None:
    for name, options in _trees(study):
        first_start = name in ("options", f"the stage {study.stages[0].name}")
        for option in options:
            if option in _OWN and not (option == "start_from" and first_start):
                raise InputError(f"{where}: {name} sets {option}: leave it out, because {_OWN[option]}")
    arms = [(arm, flat(options)) for arm, options in study.arms.items()]
    for place, (arm, options) in enumerate(arms):
        for other, others in arms[:place]:
            if options == others:
                raise InputError(f"{where}: the arms {other} and {arm} have the same options: remove one of them")
