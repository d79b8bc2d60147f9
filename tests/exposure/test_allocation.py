import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_titan.exposure import Buckets, bucket_weights, default_threshold, tail_mass

COUNTS = st.lists(st.integers(0, 10**12), min_size=2, max_size=14)


def naive_weights(counts, bounds, threshold, alpha, gamma, eps, min_count):
    """The equations of the method, one by one, in plain Python."""
    tail = [b for b, bound in enumerate(bounds) if bound >= threshold]
    counted = [b for b in tail if counts[b] >= min_count]
    total = sum(counts[b] for b in counted)
    weights = [1.0] * len(counts)
    for b in tail:
        weights[b] = 1 + alpha
    if total == 0:
        return weights
    q = {b: counts[b] / total for b in counted}
    r = {b: (q[b] + eps) ** -gamma for b in counted}
    r_mean = sum(q[b] * r[b] for b in counted)
    for b in counted:
        weights[b] = 1 + alpha * r[b] / r_mean
    return weights


def test_worked_example_of_two_tail_buckets():
    weights = bucket_weights(torch.tensor([5, 7, 300, 100]), torch.tensor([0, 8, 16, 32]), threshold=16)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([1, 1, 1.12679, 1.21962], abs=5e-6)


def test_worked_example_of_the_papers_16k_stream():
    """27.4 % of the targets at 4K and more carry 30.3 % of the loss mass."""
    buckets = Buckets(16384)
    counts = torch.zeros(len(buckets), dtype=torch.int64)
    counts[:10] = 7260
    counts[10], counts[11] = 16_440, 10_960
    weights = bucket_weights(counts, buckets.lower_bounds, threshold=4096)
    ones = torch.ones_like(weights)
    assert tail_mass(counts, ones, buckets.lower_bounds, threshold=4096) == pytest.approx(0.274, abs=1e-9)
    assert tail_mass(counts, weights, buckets.lower_bounds, threshold=4096) == pytest.approx(0.303, abs=5e-4)


@given(
    counts=COUNTS,
    first=st.integers(0, 13),
    alpha=st.floats(0, 4),
    gamma=st.floats(0, 2),
    eps=st.floats(1e-9, 1e-2),
    min_count=st.integers(0, 10**6),
)
def test_weights_equal_a_naive_reading_of_the_equations(counts, first, alpha, gamma, eps, min_count):
    bounds = Buckets(16384).lower_bounds.tolist()[: len(counts)] + [16384 * 2**i for i in range(len(counts) - 12)]
    threshold = bounds[min(first, len(bounds) - 1)]
    weights = bucket_weights(
        torch.tensor(counts),
        torch.tensor(bounds),
        threshold=threshold,
        alpha=alpha,
        gamma=gamma,
        eps=eps,
        min_count=min_count,
    )
    expected = naive_weights(counts, bounds, threshold, alpha, gamma, eps, min_count)
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


@given(counts=COUNTS, alpha=st.floats(0, 4), gamma=st.floats(0, 1.5), min_count=st.integers(0, 1000))
def test_equation_5_the_tails_extra_mass_is_alpha(counts, alpha, gamma, min_count):
    """sum_T q_b (w_b - 1) = alpha, also among the buckets that have enough counts."""
    bounds = torch.tensor([0] + [8 * 2**i for i in range(len(counts) - 1)])
    count_n = torch.tensor(counts)
    weights = bucket_weights(count_n, bounds, threshold=8, alpha=alpha, gamma=gamma, min_count=min_count).double()
    tail = bounds >= 8
    for among in (tail, tail & (count_n >= min_count)):
        total = count_n[among].sum()
        if total:
            extra = (count_n[among] / total * (weights[among] - 1)).sum().item()
            # The weights are float32. The largest weight may belong to a bucket without counts.
            assert extra == pytest.approx(alpha, abs=1e-6 * (1 + alpha))


def test_a_bucket_below_min_count_keeps_the_mean_weight():
    weights = bucket_weights(torch.tensor([9, 300, 100, 3]), torch.tensor([0, 8, 16, 32]), threshold=8, min_count=4)
    assert weights.tolist() == pytest.approx([1, 1.12679, 1.21962, 1.15], abs=5e-6)


def test_a_tail_without_counts_keeps_the_mean_weight():
    assert bucket_weights(torch.tensor([9, 0, 0]), torch.tensor([0, 8, 16]), threshold=8).tolist() == pytest.approx(
        [1, 1.15, 1.15]
    )


def test_gamma_0_weights_the_whole_tail_alike():
    assert bucket_weights(
        torch.tensor([9, 5, 1]), torch.tensor([0, 8, 16]), threshold=8, gamma=0.0
    ).tolist() == pytest.approx([1, 1.15, 1.15])


def test_a_large_gamma_gives_the_mass_to_the_rarest_bucket():
    """eps ** -60 is infinite. Without a guard the mean would be NaN, and the weights those of gamma 0."""
    counts, bounds = [9, 5, 1], [0, 8, 16]
    weights = bucket_weights(torch.tensor(counts), torch.tensor(bounds), threshold=8, gamma=60.0)
    assert weights.tolist() == pytest.approx(naive_weights(counts, bounds, 8, 0.15, 60.0, 1e-6, 1), rel=1e-6)
    assert weights[2].item() == pytest.approx(1 + 6 * 0.15)


def test_alpha_0_is_exactly_1():
    assert bucket_weights(torch.tensor([9, 5, 1]), torch.tensor([0, 8, 16]), threshold=8, alpha=0.0).tolist() == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("alpha", -0.1), ("alpha", float("nan")), ("alpha", float("inf")), ("gamma", -1), ("gamma", float("inf"))],
        *[("eps", 0), ("threshold", -1), ("min_count", -1)],
    ],
)
def test_values_the_rule_is_not_defined_for_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"^{option} is"):
        bucket_weights(torch.tensor([1, 2]), torch.tensor([0, 8]), **{"threshold": 8, option: value})


def test_counts_of_other_buckets_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        bucket_weights(torch.tensor([1, 2, 3]), torch.tensor([0, 8]), threshold=8)


@pytest.mark.parametrize(("window", "threshold"), [(16384, 4096), (64, 16), (16, 4), (8, 0), (2, 0)])
def test_default_threshold(window: int, threshold: int) -> None:
    assert default_threshold(window) == threshold
