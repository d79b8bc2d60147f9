"""The comparisons of a synthetic study against hand-computed means and scipy."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from exact_titan.errors import InputError
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.study.comparisons import Pairs, read_pairs
from exact_titan.study.results import read_results, stage_runs
from exact_titan.study.spec import Outcome
from exact_titan.study.weighting import doses, loss_masses
from tests.study.synthetic import make_study, pack_facts, write_study

ARMS = {
    "standard": {},
    "exact-0.5": {"rule": "exact", "alpha": 0.5},
    "exact-1.0": {"rule": "exact", "alpha": 1.0},
    "random-1.0": {"rule": "random", "alpha": 1.0},
}
EFFECTS = {"standard": 0.0, "exact-0.5": -0.004, "exact-1.0": -0.008, "random-1.0": 0.0}
STUDY = make_study(ARMS, seeds=(0, 1, 2), starts=(0, 1))
UNFINISHED = [("exact-1.0", 1, 2), ("random-1.0", 0, 0)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_facts(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("study") / "study"
    write_study(out, dataset, STUDY, effects=EFFECTS, unfinished=UNFINISHED)
    return out


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return read_pairs(read_results(folder))


def tail(folder: Path, arm: str, start: int, seed: int) -> float:
    """Return the mean of the tail's targets from the target file of the last validation."""
    losses = read_target_losses(folder / f"extension/{arm}/start-{start}-seed-{seed}", 40, "ema")
    return float(losses.cross_entropy[losses.bucket >= 2].astype(np.float64).mean())


def test_the_pairs_and_the_missing_runs(pairs):
    assert pairs.arms == ["exact-0.5", "exact-1.0", "random-1.0"]
    assert pairs.missing == ["extension, arm exact-1.0, start 1, seed 2", "extension, arm random-1.0, start 0, seed 0"]
    assert [len(one) for one in pairs.runs.values()] == [6, 5, 5]
    assert pairs.weights == ("ema", "last")
    assert pairs.final_step == 40
    assert [one.name for one in pairs.outcomes][:2] == ["far facts", "tail"]


def test_a_comparison_equals_the_t_test_over_the_means_of_the_seeds(folder, pairs):
    differences = {
        (start, seed): tail(folder, "exact-0.5", start, seed) - tail(folder, "standard", start, seed)
        for start in (0, 1)
        for seed in (0, 1, 2)
    }
    found = pairs.compare(Outcome("tail", "tail"), "exact-0.5", 40, "ema")
    assert found.differences == pytest.approx(differences, rel=1e-4)
    of_seeds = [(differences[0, seed] + differences[1, seed]) / 2 for seed in (0, 1, 2)]
    reference = stats.ttest_1samp(of_seeds, 0)
    assert found.test.n == 3
    assert found.test.mean == pytest.approx(np.mean(of_seeds), rel=1e-4)
    assert found.test.p == pytest.approx(reference.pvalue, rel=1e-3)
    assert found.baseline == pytest.approx(
        np.mean([tail(folder, "standard", start, seed) for start in (0, 1) for seed in (0, 1, 2)])
    )
    assert found.value - found.baseline == pytest.approx(found.test.mean, rel=1e-6)
    # The pairs of one start are independent.
    of_start = pairs.compare(Outcome("tail", "tail"), "exact-0.5", 40, "ema", start=1)
    assert of_start.test.n == 3
    assert of_start.test.mean == pytest.approx(np.mean([differences[1, seed] for seed in (0, 1, 2)]), rel=1e-4)


def test_a_seed_that_a_start_lacks_does_not_count(pairs):
    found = pairs.compare(Outcome("tail", "tail"), "exact-1.0", 40, "ema")
    assert found.test.n == 2
    assert found.value - found.baseline == pytest.approx(found.test.mean, rel=1e-6)


def test_a_bucket_equals_the_outcome_of_its_targets(pairs):
    record = next(iter(pairs.runs["exact-0.5"].values()))[1].record(40, "last")
    assert pairs.buckets(40) == {label: row["targets"] for label, row in record["buckets"].items()}
    buckets = [pairs.compare_bucket(label, "exact-0.5", 40, "last") for label in ("16-31", "32-64")]
    whole = pairs.compare(Outcome("tail", "tail"), "exact-0.5", 40, "last")
    counts = [one.targets for one in buckets]
    assert sum(counts) == whole.targets
    assert np.average([one.test.mean for one in buckets], weights=counts) == pytest.approx(whole.test.mean, rel=1e-5)


def test_the_two_checkpoints_of_every_pair(folder, pairs, monkeypatch):
    monkeypatch.setattr("exact_titan.study.checkpoint_difference.DRAWS", 100)
    found = list(pairs.checkpoints(Outcome("tail", "tail"), 40, "last"))
    assert len(found) == 16
    one = found[0]
    assert (one.arm, one.start, one.seed) == ("exact-0.5", 0, 0)
    arm, base = (
        read_target_losses(folder / f"extension/{name}/start-0-seed-0", 40) for name in ("exact-0.5", "standard")
    )
    difference_T = arm.cross_entropy.astype(np.float64) - base.cross_entropy
    assert one.difference.value == pytest.approx(
        np.mean([difference_T[base.bucket == bucket].mean() for bucket in (2, 3)])
    )
    assert one.difference.cells == 2
    assert one.difference.documents == len(set(base.document[base.bucket >= 2].tolist()))


def test_the_loss_mass_and_the_arms_that_differ_in_alpha(pairs):
    standard, *others = loss_masses(pairs)
    assert [standard.arm, *(one.arm for one in others)] == list(ARMS)
    total = sum(standard.targets.values())
    assert standard.percent == pytest.approx({label: 100 * n / total for label, n in standard.targets.items()})
    # Equation 5: the tail's extra mass is alpha times the tail's targets.
    plain = standard.tail_percent(16) / 100
    assert others[0].tail_percent(16) / 100 == pytest.approx(1.5 * plain / (1 + 0.5 * plain), rel=1e-6)
    (dose,) = doses(pairs)
    assert (dose.rule, dose.baseline) == ("exact", 0)
    assert dose.arms == ((0.5, "exact-0.5"), (1.0, "exact-1.0"))


def test_a_baseline_that_is_another_alpha(tmp_path, dataset):
    arms = {name: {"rule": "exact", "alpha": alpha} for name, alpha in (("a", 0.2), ("b", 0.5), ("c", 0.8))}
    write_study(
        tmp_path / "study", dataset, make_study(arms, seeds=(0,)), effects=dict.fromkeys(arms, 0.0), steps=(20,)
    )
    (dose,) = doses(read_pairs(read_results(tmp_path / "study")))
    assert (dose.baseline, dose.arms) == (0.2, ((0.5, "b"), (0.8, "c")))


def test_nothing_paired_and_other_windows_are_refused(tmp_path, dataset):
    study = make_study({"standard": {}, "exact": {"rule": "exact"}}, seeds=(0,))
    effects = {"standard": 0.0, "exact": -0.01}
    write_study(tmp_path / "half", dataset, study, effects=effects, steps=(20,), unfinished=[("exact", 0, 0)])
    with pytest.raises(InputError, match=r"no pair of runs is finished \(1 of 2 runs are\)"):
        read_pairs(read_results(tmp_path / "half"))
    write_study(tmp_path / "other", dataset, study, effects=effects, steps=(20,))
    run = stage_runs(study, tmp_path / "other", 1)[1].folder / "metrics.jsonl"
    run.write_text(run.read_text().replace('"split":"val"', '"split":"test"'))
    with pytest.raises(InputError, match="different validation windows in step 20"):
        read_pairs(read_results(tmp_path / "other"))
    records = [json.loads(line) for line in run.read_text().splitlines()]
    run.write_text("".join(json.dumps({**one, "step": one["step"] + 1}) + "\n" for one in records))
    with pytest.raises(InputError, match="no common validation"):
        read_pairs(read_results(tmp_path / "other"))
