"""The statistics over pairs of runs against independent references, and their coverage on simulated pairs."""

import itertools

import numpy as np
import pytest
from scipy import stats

from exact_titan.study.statistics import independent_values, mean_over_pairs, paired_test

VALUES = [-0.0024, -0.0009, -0.0031, 0.0004, -0.0017, -0.0022]


def test_students_interval_by_hand():
    # t(0.975, 2) = 4.302653, sd = 1, n = 3.
    assert mean_over_pairs([1.0, 2.0, 3.0]).error == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert mean_over_pairs([1.0]).error is None


def test_interval_and_p_equal_the_paired_t_test_of_scipy():
    arm, baseline = np.array(VALUES) + 3, np.full(6, 3.0)
    reference = stats.ttest_rel(arm, baseline)
    interval = reference.confidence_interval(0.95)
    found = paired_test(list(arm - baseline))
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.mean - found.error == pytest.approx(interval.low, rel=1e-9)
    assert found.mean + found.error == pytest.approx(interval.high, rel=1e-9)
    assert found.excludes_zero == (reference.pvalue < 0.05)


@pytest.mark.parametrize(
    "values", [VALUES, [*VALUES, 0.0001, 0.0004], [1.0] * 6, [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0]]
)
def test_sign_flip_test_equals_all_patterns_and_scipy(values):
    n = len(values)
    patterns = np.array(list(itertools.product([1, -1], repeat=n)))
    extreme = np.abs(patterns @ values) >= abs(sum(values)) - 1e-12
    reference = stats.permutation_test(
        (np.array(values),), lambda x, axis: np.abs(x.mean(axis)), permutation_type="samples", vectorized=True,
        alternative="greater", n_resamples=np.inf,
    )  # fmt: skip
    assert paired_test(values).sign_flip_p == pytest.approx(extreme.mean()) == pytest.approx(reference.pvalue)


def test_sign_flip_test_needs_six_pairs():
    # With 5 pairs the smallest p is 2 / 2^5 = 0.0625.
    assert paired_test(VALUES[:5]).sign_flip_p is None
    assert paired_test([-1.0, -1.1, -0.9, -1.2, -1.0, -0.8]).sign_flip_p == 2 / 2**6


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_the_detectable_effect_is_found_in_80_percent_of_simulated_studies(n):
    rng = np.random.default_rng(n)
    # The values of paired_test have the mean 5 and the standard deviation 1.
    shape = rng.normal(size=n)
    found = paired_test(list(5 + (shape - shape.mean()) / shape.std(ddof=1)))
    draws = rng.normal(found.detectable, 1, (40_000, n))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("mean", [0.4, 1.0, 3.0])
def test_the_pairs_needed_are_the_fewest_with_80_percent_power(mean):
    rng = np.random.default_rng(0)
    needed = paired_test([mean - 0.5**0.5, mean + 0.5**0.5]).pairs_needed  # the standard deviation is 1

    def power(n: int) -> float:
        return (stats.ttest_1samp(rng.normal(mean, 1, (40_000, n)), 0, axis=1).pvalue < 0.05).mean()

    assert power(needed) > 0.79
    assert power(needed - 1) < 0.805


def test_values_without_a_spread_or_without_a_number():
    same = paired_test([0.5, 0.5, 0.5])
    assert (same.error, same.p, same.detectable, same.pairs_needed) == (0, 0, 0, 2)
    none = paired_test([0.0, 0.0])
    assert (none.error, none.p, none.pairs_needed) == (0, 1, None)
    one = paired_test([0.5])
    assert (one.n, one.mean, one.error, one.p, one.detectable) == (1, 0.5, None, None, None)
    # A run that has diverged is not left out.
    diverged = paired_test([0.5, float("nan"), 0.4])
    assert np.isnan(diverged.mean)
    assert not diverged.excludes_zero
    # An effect of a thousandth of the deviation.
    assert paired_test([0.001 - 0.5**0.5, 0.001 + 0.5**0.5]).pairs_needed == pytest.approx(7_848_880, rel=1e-3)


@pytest.mark.parametrize("n", [3, 5, 6, 10])
def test_coverage_of_students_interval_over_pairs(n):
    rng = np.random.default_rng(n)
    values = rng.normal(-0.0018, 0.0007, (6000, n))
    covered = [abs(one.value + 0.0018) < one.error for one in map(mean_over_pairs, values)]
    assert 0.94 <= np.mean(covered) <= 0.96


def test_pairs_of_several_starts_are_averaged_over_the_starts():
    one_start = {(0, seed): float(seed) for seed in (3, 1, 2)}
    assert independent_values(one_start) == ([1.0, 2.0, 3.0], [(0, 1), (0, 2), (0, 3)])
    two_starts = {(start, seed): 10.0 * start + seed for start in (0, 1) for seed in (1, 2, 3)}
    assert independent_values(two_starts) == ([6.0, 7.0, 8.0], sorted(two_starts))
    # More starts than seeds: the starts are the independent values.
    more_starts = {(start, seed): 10.0 * start + seed for start in (0, 1, 2) for seed in (1, 2)}
    assert independent_values(more_starts) == ([1.5, 11.5, 21.5], sorted(more_starts))
    # A seed without a pair in every start does not count, and a start without a common seed does not count.
    del two_starts[1, 2]
    assert independent_values(two_starts) == ([6.0, 8.0], [(0, 1), (0, 3), (1, 1), (1, 3)])
    assert independent_values({(0, 1): 1.0, (0, 2): 2.0, (1, 3): 9.0}) == ([1.0, 2.0], [(0, 1), (0, 2)])


def test_coverage_with_two_starts():
    """Difference = effect + start + seed + rest. The interval covers the effect over the two starts of the study.

    An interval over all 12 pairs is too narrow, because the pairs of a seed share the order of the data.
    """
    rng = np.random.default_rng(0)
    covered = pooled = 0
    for _ in range(3000):
        start_I, seed_K = rng.normal(0, 1, 2), rng.normal(0, 1, 6)
        table = 0.5 + start_I[:, None] + seed_K + rng.normal(0, 1, (2, 6))
        values, _ = independent_values({(i, k): table[i, k] for i in range(2) for k in range(6)})
        truth = 0.5 + start_I.mean()
        found, over_all = mean_over_pairs(values), mean_over_pairs(list(table.ravel()))
        covered += abs(found.value - truth) < found.error
        pooled += abs(over_all.value - truth) < over_all.error
    assert 0.935 <= covered / 3000 <= 0.965
    assert pooled / 3000 < 0.93
