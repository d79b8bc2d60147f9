"""The completed config of every arm of a study, before the first run of the study begins.

The function runs in a process of its own (:mod:`exact_titan.launch.warm`), because it imports torch and torchtitan.
"""

import json
import os
from dataclasses import asdict, replace
from typing import Any

from exact_titan.config import config_of
from exact_titan.errors import InputError
from exact_titan.launch.arguments import Arguments
from exact_titan.launch.toml_settings import read_tree
from exact_titan.models.architecture import Architecture
from exact_titan.runs.run_record import RunRecord, Start
from exact_titan.study.plan import Planned
from exact_titan.study.results import is_finished
from exact_titan.titan import start
from exact_titan.titan.identity import record_of
from exact_titan.titan.preflight import complete
from exact_titan.titan.run_config import RunConfig


def run_arguments(one: Planned, *, where: str) -> Arguments:
    """Return the checked arguments of a run.

    Raises:
        InputError: naming the file of the study, the stage, the arm and the option.
    """
    recipe, settings = read_tree(one.options, where=_where(one, where))
    return Arguments(recipe=recipe, file=settings)


def complete_records(planned: list[Planned], *, nproc: int, where: str) -> list[RunRecord]:
    """Return what ``run.json`` of each run will have, from the completed config of the run.

    Args:
        planned: runs of the study, every stage after the stages before it.
        nproc: number of processes of a run.
        where: the file of the study, for messages.

    Raises:
        InputError: naming the file of the study, the stage, the arm and the option, if a run cannot start. A dataset or
            a start that is missing is such an option.
    """
    before = dict(os.environ)
    os.environ.update(RANK="0", WORLD_SIZE=str(nproc), LOCAL_WORLD_SIZE=str(nproc))
    try:
        return _complete_records(planned, where)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _complete_records(planned: list[Planned], where: str) -> list[RunRecord]:
    records: list[RunRecord] = []
    completed: dict[tuple[str, str], RunConfig] = {}
    continued = {one.previous.stage for one in planned if one.previous is not None}
    for one in planned:
        at = _where(one, where)
        config = config_of(run_arguments(one, where=where), where=at)
        try:
            _check_checkpoints(config, is_continued=one.run.stage in continued)
            _check_validation(config)
            # A new folder: the record is the record of a new run, also if the run has begun.
            config = _with_folder(config, f"{config.dump_folder}.new")
            previous = one.previous
            if previous is not None and not is_finished(previous):
                source = completed.get((previous.stage, previous.arm)) or completed[previous.stage, ""]
                made = _complete_before_its_start(config, source)
            else:
                made = complete(config)
        except InputError as error:
            raise InputError(f"{at}: {error}") from None
        completed[one.run.stage, one.run.arm] = made
        records.append(_as_written(record_of(made, None)))
    return records


def _complete_before_its_start(config: RunConfig, source: RunConfig) -> RunConfig:
    """Return the completed config of a run whose previous stage has not finished.

    The config has the first weights of the previous stage instead.

    Args:
        config: the config of the run.
        source: the completed config of the previous stage.
    """
    previous = _architecture(source)
    tokenizers = [made.manifest.tokenizer.sha256 for made in source.dataloader._mixture.datasets]
    made = complete(
        replace(
            config,
            start_from="" if config.model or source.model else source.start_from,
            model=config.model or source.model,
            architecture=config.architecture if config.model else source.architecture,
            _stage_before=None if config.model else previous,
        )
    )
    if config.model:
        start.compare_with_previous(config, _architecture(made), previous)
    if made.dataloader._mixture.datasets[0].manifest.tokenizer.sha256 not in tokenizers and not made.model:
        raise InputError(
            f"{config.dataloader.dataset_path} was packed with another tokenizer than {source.dataloader.dataset_path} "
            f"of the stage before: pack both with one tokenizer"
        )
    return made if config.model else replace(made, architecture=source.architecture)


def _with_folder(config: RunConfig, folder: str) -> RunConfig:
    changes: dict[str, Any] = {"dump_folder": folder}
    return replace(config, **changes)


def _architecture(config: RunConfig) -> Architecture:
    assert config.model_spec is not None
    return config.model_spec.model.architecture


def _check_validation(config: RunConfig) -> None:
    steps, validator = config.training.steps, config.validator
    if not validator.enable:
        raise InputError("validator.enable is off: a study compares the validations of its runs, so leave it on")
    if steps % validator.freq:
        raise InputError(
            f"validator.freq is {validator.freq}, and the last of the {steps} steps has no validation: set a "
            f"validator.freq that divides training.steps"
        )


def _check_checkpoints(config: RunConfig, *, is_continued: bool) -> None:
    checkpoint = config.checkpoint
    if not checkpoint.enable or checkpoint.load_only:
        raise InputError(
            "checkpoint.enable is off or checkpoint.load_only is on: a study resumes its runs from their checkpoints, "
            "so save checkpoints"
        )
    if is_continued and checkpoint.last_save_in_hf:
        raise InputError("checkpoint.last_save_in_hf is on: the next stage cannot start from such a checkpoint")


def _where(one: Planned, where: str) -> str:
    return f"{where}, stage {one.run.stage}" + (f", arm {one.run.arm}" if one.run.arm else "")


def _as_written(record: RunRecord) -> RunRecord:
    """Return a record as a reader of ``run.json`` gets it."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(record), default=str))
    return RunRecord(**{**fields, "starts": [Start(**one) for one in fields["starts"]]})
