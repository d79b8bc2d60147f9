"""The statistics over examples: values by hand, and the coverage on simulated cells."""

import numpy as np
import pytest

from exact_titan.study import example_statistics
from exact_titan.study.checkpoint_difference import mean_over_documents
from exact_titan.study.example_statistics import SCORE, SCORE_DIFFERENCE, CellSums, Scale, macro_average


def average(cells: list[np.ndarray], scale: Scale | None) -> example_statistics.Interval:
    weights = [1 / len(cells)] * len(cells)
    return macro_average([CellSums(one, seed) for seed, one in enumerate(cells)], weights, scale)


def test_the_value_is_the_weighted_average_of_the_means():
    cells = [CellSums(np.array([0.0, 1.0]), 0), CellSums(np.array([1.0, 1.0, 1.0, 0.0]), 1)]
    found = macro_average(cells, [0.25, 0.75], SCORE)
    assert found.value == pytest.approx(0.25 * 0.5 + 0.75 * 0.75)
    assert (found.examples, found.cells) == (6, 2)


def test_the_interval_of_a_cell_equals_the_formulas_of_agresti_coull_and_bonett_price():
    # The bootstrap's quantile of t is below 1.96 here, so the closed formulas hold with n - 1 in place of n.
    right = np.repeat([1.0, 0.0], [99, 1])
    p, n = (99 + 2) / 104, 104
    half = 1.96 * np.sqrt(p * (1 - p) / (n - 1))
    found = average([right], SCORE)
    assert (found.low, found.high) == pytest.approx((p - half, min(1, p + half)))
    change = np.repeat([1.0, -1.0, 0.0], [2, 1, 97])
    more, less, n = 3 / 102, 2 / 102, 102
    half = 1.96 * np.sqrt((more + less - (more - less) ** 2) / (n - 1))
    found = average([change], SCORE_DIFFERENCE)
    assert (found.low, found.high) == pytest.approx((more - less - half, more - less + half))


@pytest.mark.parametrize("examples", [20, 100])
def test_equal_answers_are_no_proof_of_equal_models(examples):
    found = average([np.zeros(examples)] * 4, SCORE_DIFFERENCE)
    assert found.value == 0
    # Close to the rule of three: 3 / number of all examples.
    assert found.high == -found.low == pytest.approx(2.8 / (4 * examples), rel=0.05)
    assert not found.excludes_zero
    assert 3 / examples < 1 - average([np.ones(examples)], SCORE).low < 5 / examples


def test_values_without_spread_and_single_examples_have_no_interval():
    assert average([np.full(30, 0.1)], None).low is None
    assert average([np.ones(1), np.array([0.0, 1.0])], SCORE).low is None
    # A quarter of the resamples of three values draws one value only.
    assert average([np.array([0.1, 0.2, 0.2])], None).low is None


def test_examples_of_one_unit_count_once():
    rng = np.random.default_rng(2)
    contexts = rng.normal(size=30)
    alone = macro_average([CellSums(contexts, 0)], [1.0], None)
    asked = macro_average([CellSums(np.repeat(contexts, 4), 0, np.repeat(np.arange(30), 4))], [1.0], None)
    assert (asked.value, asked.low, asked.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (alone.examples, asked.examples) == (30, 120)


def test_units_of_unequal_size_have_the_mean_and_the_error_of_a_ratio():
    values, units = np.array([1.0, 2.0, 3.0, 4.0, 8.0, 6.0]), np.array([5, 5, 5, 2, 9, 9])
    sums = CellSums(values, 0, units)
    assert sums.total / sums.size == pytest.approx(values.mean())
    variance = (sums.squares / sums.size - values.mean() ** 2) / (sums.size - 1)
    assert np.sqrt(variance) == pytest.approx(mean_over_documents(values, units).error)


def test_resamples_stay_inside_the_cells():
    found = CellSums(np.arange(5.0), 3)
    assert found.total_R.shape == (example_statistics.DRAWS,)
    assert found.total_R.min() >= 0
    assert found.total_R.max() <= 20
    assert found.total_R.mean() == pytest.approx(10, abs=0.5)


def test_blocks_of_resamples_have_the_same_number_of_draws(monkeypatch):
    monkeypatch.setattr(example_statistics, "_BLOCK", 700)
    assert CellSums(np.arange(100.0), 0).total_R.shape == (example_statistics.DRAWS,)


def changes(rng: np.random.Generator, cells: int, examples: int, gained: float, lost: float) -> list[np.ndarray]:
    """Differences of right (1) and wrong (0) answers."""
    drawn = rng.random((cells, examples))
    return list(np.where(drawn < gained, 1.0, np.where(drawn < gained + lost, -1.0, 0.0)))


@pytest.mark.parametrize(
    ("cells", "examples", "gained", "lost"),
    [(1, 20, 0.1, 0.1), (1, 100, 0.03, 0.0), (4, 20, 0.03, 0.0), (11, 20, 0.3, 0.05), (11, 20, 0.02, 0.0)],
)
def test_the_interval_of_a_difference_covers(monkeypatch, cells, examples, gained, lost):
    """Paired answers, from rare changes in a single cell to frequent changes in eleven cells: at least 93 % cover."""
    assert coverage(monkeypatch, lambda rng: changes(rng, cells, examples, gained, lost), gained - lost, False) >= 0.93


@pytest.mark.parametrize(("cells", "examples", "right"), [(1, 20, 0.5), (1, 100, 0.98), (4, 20, 0.9), (11, 20, 0.02)])
def test_the_interval_of_a_score_covers(monkeypatch, cells, examples, right):
    def draw(rng: np.random.Generator) -> list[np.ndarray]:
        return list((rng.random((cells, examples)) < right).astype(float))

    assert coverage(monkeypatch, draw, right, True) >= 0.93


def test_the_interval_of_a_cross_entropy_covers(monkeypatch):
    """Skewed differences without bounds, in cells of 20 examples."""
    assert coverage(monkeypatch, lambda rng: list(rng.gamma(2.0, 0.5, (6, 20)) - 0.9), 0.1, None) >= 0.93


def coverage(monkeypatch, draw, true: float, score: bool | None) -> float:
    """Return the share of 300 intervals that contain the true average, with 200 resamples each."""
    monkeypatch.setattr(example_statistics, "DRAWS", 200)
    scale = {True: SCORE, False: SCORE_DIFFERENCE, None: None}[score]
    rng = np.random.default_rng(1)
    found = [average(draw(rng), scale) for _ in range(300)]
    return sum(one.low is not None and one.low <= true <= one.high for one in found) / len(found)
