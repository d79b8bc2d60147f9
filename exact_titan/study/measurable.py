"""The check that the runs of a study will record the values of its outcomes."""

from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord, options_of
from exact_titan.study.spec import Outcome, Study


def check_outcomes(study: Study, record: RunRecord, *, where: str) -> None:
    """Refuse an outcome that the runs of the last stage will not record.

    Args:
        study: the study.
        record: record of a run of the last stage.
        where: the file of the study, for messages.

    Raises:
        InputError: naming the outcome and the option.
    """
    for outcome in study.outcomes:
        if missing := _missing(outcome, record):
            raise InputError(f"{where}: the outcome {outcome.name!r} is not recorded: {missing}")


def _missing(outcome: Outcome, record: RunRecord) -> str:
    options = options_of(record.config)
    if outcome.select == "context_gain":
        pieces = options.get("validator.context_gain") or []
        if outcome.piece not in pieces:
            return f"validator.context_gain is {pieces}: add {outcome.piece} to it"
    if outcome.select == "facts":
        if options["validator.keep_targets"] < 1 or options["validator.steps"] != -1:
            return "facts need every target of the validation: set validator.keep_targets to 1 or more, and steps to -1"
        from exact_titan.study.facts import FILE_NAME  # this import loads torch

        for dataset in (record.validation or {}).get("datasets", ()):
            if not (Path(dataset["path"]) / FILE_NAME).is_file():
                return f"{dataset['path']} has no {FILE_NAME}: make the dataset with `exact-titan study facts`"
    return ""
