"""The value of every selection, against the targets one by one."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.study.outcomes import RunOutcomes, Value
from exact_titan.study.results import ArmRun
from exact_titan.study.spec import Outcome
from tests.study.synthetic import THRESHOLD, WINDOW, Validation, losses_of, make_study, pack_facts, write_run

FACTS = Outcome("facts", "facts")
STUDY = make_study({"standard": {}, "exact": {"rule": "exact"}})


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    return Validation(pack_facts(tmp_path_factory.mktemp("facts")))


@pytest.fixture
def run(tmp_path: Path, validation: Validation) -> ArmRun:
    one = ArmRun("exact", 0, 3, "extension", tmp_path / "run")
    write_run(one, STUDY, validation, -0.01, steps=(20, 40, 60), weights=("last", "ema"), keep=2)
    return one


@pytest.mark.parametrize("weights", ["last", "ema"])
def test_every_selection_equals_the_mean_over_its_targets(run, validation, weights):
    ce_T = losses_of(run, validation, -0.01, 60, weights).astype(np.float32).astype(np.float64)
    context_T = Buckets(WINDOW).lower_bounds.numpy()[validation.bucket]
    chosen = {
        "tail": context_T >= THRESHOLD,
        "below_tail": context_T < THRESHOLD,
        "all": np.ones(len(ce_T), dtype=bool),
    }
    outcomes = RunOutcomes(run.folder)
    for select, chosen_T in chosen.items():
        found = outcomes.value(Outcome(select, select), 60, weights, THRESHOLD)
        assert found == Value(pytest.approx(ce_T[chosen_T].mean(), rel=1e-6), int(chosen_T.sum()))
    facts = {(0, None): 1, (16, None): 16, (0, 16): 1, (8, 24): 8}
    for (least, most), first in facts.items():
        chosen_T = (validation.distance >= first) & (validation.distance < (most or 10**6))
        assert 0 < chosen_T.sum() < len(ce_T) / 2
        found = outcomes.value(Outcome("facts", "facts", least, most), 60, weights, THRESHOLD)
        assert found == Value(pytest.approx(ce_T[chosen_T].mean(), rel=1e-12), int(chosen_T.sum()))
    tail = int(chosen["tail"].sum())
    assert outcomes.value(Outcome("gain", "context_gain", piece=16), 60, weights, THRESHOLD) == Value(0.11, tail)


def test_the_threshold_of_the_study_decides_and_not_the_threshold_of_the_run(run):
    outcomes = RunOutcomes(run.folder)
    tail, below = (outcomes.value(Outcome(one, one), 60, "last", 32) for one in ("tail", "below_tail"))
    buckets = outcomes.record(60, "last")["buckets"]
    assert tail == Value(buckets["32-64"]["cross_entropy"], buckets["32-64"]["targets"])
    assert below.targets == sum(row["targets"] for label, row in buckets.items() if label != "32-64")
    # The context gain belongs to the tail of the run.
    assert outcomes.value(Outcome("gain", "context_gain", piece=16), 60, "last", 32) is None


def test_facts_need_the_target_file_of_the_validation(run):
    outcomes = RunOutcomes(run.folder)
    assert outcomes.steps("ema") == [20, 40, 60]
    assert [step for step in (20, 40, 60) if outcomes.has_targets(step, "ema")] == [40, 60]
    assert outcomes.value(Outcome("facts", "facts"), 20, "ema", THRESHOLD) is None
    assert outcomes.value(Outcome("tail", "tail"), 20, "ema", THRESHOLD) is not None
    no_facts = outcomes.value(Outcome("facts", "facts", min_distance=63), 60, "last", THRESHOLD)
    assert no_facts.targets == 0
    assert math.isnan(no_facts.value)


def test_the_selected_targets_of_a_file(run, validation):
    outcomes = RunOutcomes(run.folder)
    losses = outcomes.targets(60, "last")
    tail_T = outcomes.selected(Outcome("tail", "tail"), losses, THRESHOLD)
    assert (tail_T == (Buckets(WINDOW).lower_bounds.numpy()[validation.bucket] >= THRESHOLD)).all()
    facts_T = outcomes.selected(Outcome("facts", "facts", min_distance=16), losses, THRESHOLD)
    assert (facts_T == (validation.distance >= 16)).all()


def test_mistakes_are_one_line(run, validation, tmp_path):
    def message(outcome: Outcome = FACTS) -> str:
        with pytest.raises(InputError) as error:
            RunOutcomes(run.folder).value(outcome, 60, "last", THRESHOLD)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "validator.context_gain = [32]" in message(Outcome("gain", "context_gain", piece=32))
    record = json.loads((run.folder / "run.json").read_text())

    def with_datasets(*paths: Path) -> None:
        datasets = [{"path": str(path)} for path in paths]
        (run.folder / "run.json").write_text(json.dumps({**record, "validation": {"datasets": datasets}}))

    with_datasets(tmp_path / "gone")
    assert f"{tmp_path / 'gone'}: no such folder" in message()
    with_datasets(validation.dataset, validation.dataset)
    assert "names 2 validation datasets" in message()
    other = shutil.copytree(validation.dataset, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    other_facts = pack_facts(tmp_path / "second", documents=20)
    with_datasets(other_facts)
    assert f"validated on {manifest['fingerprint'][:12]}" in message()
    (run.folder / "run.json").unlink()
    assert "has no run.json" in message()


def test_a_shuffled_validation_has_no_facts(tmp_path, validation):
    shuffled = Validation(validation.dataset)
    shuffled.set = replace(shuffled.set, seed=1)
    run = ArmRun("exact", 0, 3, "extension", tmp_path / "run")
    write_run(run, STUDY, shuffled, 0.0, steps=(20,), weights=("last",), keep=1)
    with pytest.raises(InputError, match="shuffles its windows"):
        RunOutcomes(run.folder).value(Outcome("facts", "facts"), 20, "last", THRESHOLD)


def test_a_run_without_a_validation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind":"train","step":1}\n')
    with pytest.raises(InputError, match="has no validation"):
        RunOutcomes(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind":"validation","step":1,"windows":null}\n')
    with pytest.raises(InputError, match="no buckets of a packed dataset"):
        RunOutcomes(tmp_path)
