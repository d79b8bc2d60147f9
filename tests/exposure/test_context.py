import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_titan.exposure import Buckets, effective_context


def naive_bucket(context: int, window: int) -> int:
    """Find the bucket of a context in the list [0,7], [8,15], [16,31], …. The last bucket ends at the window."""
    bounds = [(0, 7)]
    while bounds[-1][1] + 1 < window:
        low = bounds[-1][1] + 1
        bounds.append((low, 2 * low - 1))
    bounds[-1] = (bounds[-1][0], window)
    (found,) = [index for index, (low, high) in enumerate(bounds) if low <= context <= high]
    return found


def test_effective_context_counts_the_visible_tokens_of_the_own_document():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]])
    context = effective_context(positions)
    assert context.dtype == torch.int64
    assert context.tolist() == [[1, 2, 3, 1, 2], [1, 1, 1, 2, 3]]


def test_lower_bounds_of_a_16k_window():
    buckets = Buckets(window=16384)
    assert buckets.lower_bounds.tolist() == [0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    assert buckets.lower_bounds.dtype == torch.int64
    assert len(buckets) == 12
    assert buckets.labels()[0] == "0-7"
    assert buckets.labels()[-1] == "8192-16384"


def test_the_last_bucket_is_closed_at_the_window():
    """Only one target of a document that fills the window has the full context. It needs no separate bucket."""
    buckets = Buckets(window=16384)
    assert buckets.index(torch.tensor([8191, 8192, 16383, 16384])).tolist() == [10, 11, 11, 11]


@pytest.mark.parametrize("window", [1, 7, 8, 9, 16, 17, 100, 2048, 3000, 16384])
def test_every_context_is_in_the_bucket_of_the_list(window):
    buckets = Buckets(window)
    contexts = list(range(window + 1)) if window < 4096 else [0, 1, 7, 8, 4095, 4096, 8191, 8192, window - 1, window]
    index = buckets.index(torch.tensor(contexts))
    assert index.dtype == torch.int64
    assert index.tolist() == [naive_bucket(context, window) for context in contexts]


def test_index_keeps_the_shape():
    assert Buckets(64).index(torch.ones(2, 3, dtype=torch.int64)).shape == (2, 3)


@given(st.lists(st.integers(0, 700), max_size=12), st.integers(1, 700))
def test_counting_segments_equals_counting_their_targets(lengths, window):
    lengths = [min(length, window) for length in lengths]
    buckets = Buckets(window)
    contexts = [context for length in lengths for context in range(1, length + 1)]
    by_hand = [0] * len(buckets)
    for context in contexts:
        by_hand[naive_bucket(context, window)] += 1
    assert buckets.count_segments(torch.tensor(lengths, dtype=torch.int64)).tolist() == by_hand


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="window is 0"):
        Buckets(0)


@given(st.data())
def test_joint_counts_equal_a_count_of_every_target(data):
    window = data.draw(st.integers(1, 100))
    segments = data.draw(st.lists(st.integers(1, window), min_size=1, max_size=6))
    offsets = [data.draw(st.integers(0, window - length)) for length in segments]
    buckets = Buckets(window)
    expected = torch.zeros(len(buckets), len(buckets), dtype=torch.int64)
    for length, offset in zip(segments, offsets, strict=True):
        context = torch.arange(1, length + 1)
        expected.index_put_((buckets.index(context), buckets.index(context + offset)), torch.tensor(1), accumulate=True)
    found = buckets.count_joint(torch.tensor(segments, dtype=torch.int32), torch.tensor(offsets))
    assert torch.equal(found, expected)
    assert torch.equal(found.sum(1), buckets.count_segments(torch.tensor(segments)))
