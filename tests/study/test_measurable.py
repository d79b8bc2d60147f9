"""An outcome that the runs will not record is refused before the training."""

import dataclasses
import re
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord
from exact_titan.study.measurable import check_outcomes
from exact_titan.study.spec import Outcome, Study, read_study
from tests.study import toy


@pytest.fixture
def study(tmp_path) -> Study:
    return read_study(toy.write(tmp_path, Path("packed")))


def record(folder: Path, **validator: object) -> RunRecord:
    """Return a record with these options of the validator, and with one validation dataset in the folder."""
    options = {"keep_targets": 2, "steps": -1, "context_gain": [64]} | validator
    validation = {"fingerprint": "ab", "datasets": [{"path": str(folder)}]}
    return RunRecord({"validator": options}, {}, validation, "", {}, {})


@pytest.mark.parametrize(
    ("outcome", "validator", "message"),
    [
        (Outcome("gain", "context_gain", piece=32), {}, "validator.context_gain is [64]: add 32 to it"),
        (Outcome("far", "facts"), {"keep_targets": 0}, "set validator.keep_targets to 1 or more, and steps to -1"),
        (Outcome("far", "facts"), {"steps": 3}, "set validator.keep_targets to 1 or more, and steps to -1"),
        (Outcome("far", "facts"), {}, "has no facts.json: make the dataset with `exact-titan study facts`"),
    ],
)
def test_an_outcome_that_is_not_recorded(study, tmp_path, outcome, validator, message):
    asked = dataclasses.replace(study, outcomes=(*study.outcomes, outcome))
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        check_outcomes(asked, record(tmp_path, **validator), where="study.toml")
    assert str(raised.value).startswith(f"study.toml: the outcome {outcome.name!r} is not recorded: ")


def test_outcomes_that_are_recorded(study, tmp_path):
    (tmp_path / "facts.json").touch()
    outcomes = (Outcome("gain", "context_gain", piece=64), Outcome("far", "facts"), Outcome("all", "all"))
    check_outcomes(dataclasses.replace(study, outcomes=outcomes), record(tmp_path), where="study.toml")
    plain = dataclasses.replace(study, outcomes=outcomes[-1:])
    check_outcomes(plain, record(tmp_path, keep_targets=0, steps=3, context_gain=[]), where="study.toml")
