import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_titan.sampling.order import WindowOrder
from exact_titan.sampling.shares import LONGEST_PERIOD, Shares

weights = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 300)), min_size=1, max_size=12)


@given(weights)
@settings(deadline=None)
def test_every_prefix_has_its_share_of_each_dataset_within_tijdemans_bound(weights):
    shares = Shares(weights)
    counts = [0] * len(weights)
    # The bound is 1 - 1 / (2n - 2), in units of 1 / sum. For one dataset the bound is 0.
    bound = sum(weights) * (1 - 1 / (2 * len(weights) - 2)) if len(weights) > 1 else 0
    for place in range(2 * shares.period + 5):
        counts[shares[place][0]] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count * sum(weights) - (place + 1) * weight) <= bound + 1e-9


@given(weights, st.integers(0, 10**13))
@settings(deadline=None)
def test_seeking_gives_what_walking_gives(weights, start):
    """From any place on, turns follow one another. ``place`` and ``turns`` agree with the schedule."""
    shares = Shares(weights)
    turns = shares.turns(start)
    assert sum(turns) == start
    for place in range(start, start + 50):
        dataset, turn = shares[place]
        assert turn == turns[dataset]
        assert shares.place(dataset, turn) == place
        turns[dataset] += 1
    assert shares.turns(start + 50) == turns


def test_only_the_ratios_matter():
    assert Shares([30, 10]).weights == [3, 1]
    assert [Shares([30, 10])[k] for k in range(9)] == [Shares([3, 1])[k] for k in range(9)]


def test_one_dataset_has_every_place():
    assert [Shares([7])[place] for place in (0, 1, 10**12)] == [(0, 0), (0, 1), (0, 10**12)]


def test_places_far_out_in_epochs_of_a_billion_windows_take_no_memory():
    shares = Shares([30, 5, 1])
    orders = [WindowOrder(10**9 + index, "fingerprint", index) for index in range(3)]
    tracemalloc.start()
    found = []
    for place in (10**12, 10**12 + 1, 3, 10**15):
        dataset, turn = shares[place]
        found.append(orders[dataset][turn])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(found)) == 4
    assert max(found) < 10**9 + 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "weights are"),
        ([1, 0], "weights are"),
        ([LONGEST_PERIOD, 1], "the shares are whole only every 1,048,577 places, at most 1,048,576 are allowed"),
    ],
)
def test_weights_without_a_schedule_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Shares(weights)
