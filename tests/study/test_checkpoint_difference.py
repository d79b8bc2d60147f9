"""The statistics over documents against naive sums, and their coverage on simulated documents."""

import math

import numpy as np
import pytest

from exact_titan.study import checkpoint_difference
from exact_titan.study.checkpoint_difference import macro_difference, mean_over_documents


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


def targets(rng: np.random.Generator, documents: int, *, effects: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Return differences, documents and cells of a miniature's tail: lognormal lengths, windows of 64 tokens.

    The cells are the contexts 16-31 and 32-64. The targets of a document share an effect of the document, and the
    targets of a document in a cell share a further effect.
    """
    length_D = np.clip(np.exp(rng.normal(np.log(25), 1.2, documents)), 16, 500).astype(int)
    whole_D, rest_D = np.divmod(length_D, 64)
    count_DC = np.stack([whole_D * 16 + np.clip(rest_D - 15, 0, 16), whole_D * 33 + np.clip(rest_D - 31, 0, 33)], 1)
    effect_DC = effects + rng.normal(0, 0.02, (documents, 1)) + rng.normal(0, 0.01, (documents, 2))
    index_T = np.repeat(np.arange(2 * documents), count_DC.ravel())
    return effect_DC.ravel()[index_T] + rng.normal(0, 0.05, len(index_T)), index_T // 2, index_T % 2


def test_the_macro_average_gives_every_cell_the_same_weight():
    values, cells = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 3.0]), np.array([4, 4, 4, 4, 4, 4, 9, 9])
    found = macro_difference(values, np.array([0, 0, 1, 1, 2, 2, 0, 2]), cells)
    assert (found.value, found.documents, found.cells) == (1.0, 3, 2)


def test_two_documents_are_too_few_for_an_interval():
    """Half of the resamples draw one document twice. Their error is 0, so that they have no t."""
    assert macro_difference(np.array([1.0, 3.0]), np.array([0, 1]), np.array([0, 0])).error is None


def test_the_interval_equals_a_bootstrap_document_by_document(monkeypatch):
    monkeypatch.setattr(checkpoint_difference, "DRAWS", 200)
    values, documents, cells = targets(np.random.default_rng(3), 40, effects=(-0.01, 0.01))
    by_document = [(values[documents == one], cells[documents == one]) for one in np.unique(documents)]
    weights = checkpoint_difference._resamples(len(by_document), 200, 0)
    assert set(weights.sum(axis=1)) == {len(by_document)}

    def estimate(drawn: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
        """Macro average, and its error from the influence of every document."""
        per_cell = []
        for cell in (0, 1):
            total = sum((of == cell).sum() for _, of in drawn)
            mean = sum(one[of == cell].sum() for one, of in drawn) / total
            per_cell.append([(one[of == cell].sum() - mean * (of == cell).sum()) / total for one, of in drawn])
            per_cell[-1].append(mean)
        influence, n = np.mean(per_cell, axis=0)[:-1], len(drawn)
        return np.mean(per_cell, axis=0)[-1], math.sqrt(n / (n - 1) * (influence**2).sum())

    value, error = estimate(by_document)
    draws = [estimate([one for one, n in zip(by_document, row, strict=True) for _ in range(int(n))]) for row in weights]
    quantile = np.quantile([abs(one - value) / spread for one, spread in draws], 0.95, method="higher")
    found = macro_difference(values, documents, cells)
    assert found.value == pytest.approx(value)
    assert found.error == pytest.approx(quantile * error)


def test_the_number_of_documents_without_an_interval():
    one = macro_difference(np.array([1.0, 3.0]), np.array([4, 4]), np.array([0, 1]))
    assert (one.value, one.error, one.documents) == (2, None, 1)
    none = macro_difference(np.array([]), np.array([]), np.array([]))
    assert math.isnan(none.value)
    assert none.error is None
    # Most resamples have the only document of the second cell once or never.
    documents = np.array([0, 1, 2, 3, 4, 4])
    lonely = macro_difference(np.arange(6.0), documents, np.array([0, 0, 0, 0, 0, 1]))
    assert lonely.error is None
    # A difference that is the same for every target has no spread.
    assert macro_difference(np.full(6, 0.5), documents, np.zeros(6)).error == pytest.approx(0, abs=1e-12)


def test_blocks_of_resamples_give_an_interval_of_the_same_width(monkeypatch):
    values, documents, cells = targets(np.random.default_rng(0), 100, effects=(0.0, 0.0))
    whole = macro_difference(values, documents, cells)
    monkeypatch.setattr(checkpoint_difference, "_BLOCK", 9000)
    blocks = macro_difference(values, documents, cells)
    assert blocks.error != whole.error
    assert blocks.error == pytest.approx(whole.error, rel=0.12)


@pytest.mark.parametrize("documents", [100, 300])
def test_coverage_of_the_bootstrap_over_documents(documents, monkeypatch):
    monkeypatch.setattr(checkpoint_difference, "DRAWS", 400)
    rng = np.random.default_rng(documents)
    covered = []
    for _ in range(600):
        values, document, cells = targets(rng, documents, effects=(-0.002, -0.001))
        found = macro_difference(values, document, cells)
        covered.append(abs(found.value + 0.0015) < found.error)
    assert 0.93 <= np.mean(covered) <= 0.97
