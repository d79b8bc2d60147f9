import math

import numpy as np
import pytest

from exact_titan.reports.statistics import mean_over_documents, mean_over_pairs


def naive(values: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """The linearised variance of a ratio, document by document."""
    ids = sorted(set(documents.tolist()))
    sums = [float(values[documents == one].sum()) for one in ids]
    counts = [int((documents == one).sum()) for one in ids]
    mean = sum(sums) / sum(counts)
    spread = sum((total - mean * count) ** 2 for total, count in zip(sums, counts, strict=True))
    return mean, math.sqrt(len(ids) / (len(ids) - 1) * spread) / sum(counts)


def test_the_error_over_documents_equals_a_naive_sum_over_documents():
    rng = np.random.default_rng(0)
    documents = rng.integers(0, 30, 500) * 7
    values = rng.normal(3, 1, 500) + documents / 100
    found = mean_over_documents(values, documents)
    assert (found.value, found.error) == pytest.approx(naive(values, documents), rel=1e-12)
    # One target a document: the textbook standard error.
    single = mean_over_documents(values, np.arange(500))
    assert single.error == pytest.approx(values.std(ddof=1) / math.sqrt(500))


def test_one_document_has_no_error_and_no_target_has_no_value():
    assert mean_over_documents(np.array([1.0, 3.0]), np.array([4, 4])).error is None
    assert mean_over_documents(np.array([1.0, 3.0]), np.array([4, 4])).value == 2
    assert math.isnan(mean_over_documents(np.array([]), np.array([])).value)


def test_the_error_over_documents_covers_the_true_mean():
    """200 documents of unequal length, with an effect of the document: 95 % of the intervals cover, over 1000 draws."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        counts = rng.integers(1, 40, 200)
        documents = np.repeat(np.arange(200), counts)
        values = 2 + rng.normal(0, 0.5, 200)[documents] + rng.normal(0, 1, counts.sum())
        found = mean_over_documents(values, documents)
        covered += abs(found.value - 2) < 1.96 * found.error
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_students_interval_over_pairs_covers_the_true_difference(n):
    rng = np.random.default_rng(n)
    estimates = [mean_over_pairs(list(rng.normal(0.5, 1, n))) for _ in range(2000)]
    covered = np.mean([abs(one.value - 0.5) < one.error for one in estimates])
    assert 0.93 <= covered <= 0.97


def test_students_interval_over_pairs_by_hand():
    # t(0.975, 2) = 4.302653, sd = 1, n = 3.
    assert mean_over_pairs([1.0, 2.0, 3.0]).error == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_over_pairs([1.0]).error is None
