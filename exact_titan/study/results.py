"""The folder of a study: ``study.json``, and the finished runs.

``study.json`` has the study as JSON and its digest. The folder of a run is an ordinary output folder of a run::

    <folder>/<stage>/start-<i>                   a run of a shared stage
    <folder>/<stage>/<arm>/start-<i>-seed-<s>    a run of another stage
"""

import json
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.exit_codes import EXIT_CODE_FILE, ExitCode
from exact_titan.study.spec import Study
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.json_files import read_json

FILE_NAME = "study.json"
FORMAT = 1


@dataclass(frozen=True)
class ArmRun:
    """A run of the study.

    Attributes:
        arm: name of the arm. Empty: a run of a shared stage.
        start: ``debug.seed`` of the start.
        seed: ``dataloader.seed``, the order of the data. None: a run of a shared stage.
        stage: name of the stage.
        folder: output folder of the run.
    """

    arm: str
    start: int
    seed: int | None
    stage: str
    folder: Path

    def __str__(self) -> str:
        if self.seed is None:
            return f"{self.stage}, start {self.start}"
        return f"{self.stage}, arm {self.arm}, start {self.start}, seed {self.seed}"


@dataclass(frozen=True)
class Results:
    """The finished runs of the last stage.

    Attributes:
        folder: folder of the study.
        study: the study.
        runs: the finished runs of the last stage, in the order of the study: by arm, start and seed.
    """

    folder: Path
    study: Study
    runs: list[ArmRun]


def read_results(folder: Path) -> Results:
    """Read the folder of a study. The study may still train.

    Raises:
        InputError: if the folder is not the folder of a study.
    """
    study = read_study_file(folder)
    return Results(folder, study, [run for run in stage_runs(study, folder, len(study.stages) - 1) if is_finished(run)])


def stage_runs(study: Study, folder: Path, number: int) -> list[ArmRun]:
    """Return all runs of a stage, finished or not. ``number`` is the index of the stage."""
    stage = study.stages[number]
    if stage.shared:
        return [ArmRun("", i, None, stage.name, folder / stage.name / f"start-{i}") for i in study.starts]
    return [
        ArmRun(arm, i, seed, stage.name, folder / stage.name / arm / f"start-{i}-seed-{seed}")
        for arm in study.arms
        for i in study.starts
        for seed in study.seeds
    ]


def is_finished(run: ArmRun) -> bool:
    """Return whether a run has done all its steps."""
    try:
        code = read_bounded(run.folder / EXIT_CODE_FILE, 100)
    except (FileNotFoundError, ValueError):
        return False
    return code.strip() == str(int(ExitCode.FINISHED)).encode()


def read_study_file(folder: Path) -> Study:
    """Read ``study.json``.

    Raises:
        InputError: if the file is missing or is not a study of this format.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise InputError(f"{folder} has no {FILE_NAME}: name the folder of --out of `exact-titan study run`")
    try:
        fields = read_json(file)
        written, study = fields["format"], fields["study"]
        if written == FORMAT:
            return Study.of_json(study)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}): restore the file from a copy") from None
    raise InputError(f"{file} has the format {written}, not {FORMAT}: another version of exact_titan wrote the file")


def write_study_file(study: Study, folder: Path) -> None:
    """Write ``study.json`` atomically."""
    fields = {"format": FORMAT, "digest": study.digest(), "study": study.as_json()}
    write_atomically(folder / FILE_NAME, json.dumps(fields, indent=1) + "\n")
