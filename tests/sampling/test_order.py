import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from exact_titan.sampling.order import WindowOrder, permute


@given(st.integers(1, 5000), st.binary(min_size=1, max_size=8))
def test_it_is_a_permutation(n, key):
    assert sorted(permute(np.arange(n, dtype=np.uint64), n, key).tolist()) == list(range(n))


def test_any_place_of_a_billion_windows_is_found_alone():
    n = 10**9
    places = np.array([0, 1, 123_456_789, n - 1], dtype=np.uint64)
    together = permute(places, n, b"key")
    assert together.tolist() == [int(permute(place[None], n, b"key")[0]) for place in places]
    assert (together < n).all()


@pytest.mark.parametrize("n", [1, 2, 5, 1023, 1024, 1025, 3000])
def test_every_epoch_holds_every_window_once_in_an_order_of_its_own(n):
    order = WindowOrder(n, "fingerprint", 0)
    epochs = [[order[epoch * n + place] for place in range(n)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))
    if n > 5:
        assert epochs[0] != epochs[1]
        assert epochs[0] != list(range(n))


def test_the_order_depends_on_the_dataset_and_the_seed_and_on_nothing_else():
    def first(fingerprint: str, seed: int) -> list[int]:
        order = WindowOrder(500, fingerprint, seed)
        return [order[place] for place in range(50)]

    assert first("a", 0) == first("a", 0)
    assert len({tuple(first("a", 0)), tuple(first("a", 1)), tuple(first("b", 0))}) == 3


def test_jumping_about_gives_what_walking_gives():
    walked = WindowOrder(2500, "a", 0)
    expected = [walked[k] for k in range(6000)]
    jumped = WindowOrder(2500, "a", 0)
    for k in (5999, 0, 2499, 2500, 1024, 1023, 4000, 17):
        assert jumped[k] == expected[k]


@pytest.mark.parametrize("n", [1, 5, 1000, 1024, 5000])
def test_the_windows_of_a_step_are_those_of_its_turns(n):
    expected, order = WindowOrder(n, "a", 0), WindowOrder(n, "a", 0)
    for first, count in ((0, 1), (3, 0), (0, 2500), (4000, 1200), (1000, 100)):
        turns = np.arange(first, first + count)
        assert order.windows(turns).tolist() == [expected[turn] for turn in turns.tolist()]
    assert order.windows(turns[::3]).tolist() == [expected[turn] for turn in turns[::3].tolist()]


def test_memory_does_not_grow_with_the_turns():
    order = WindowOrder(10**7, "a", 0)
    for turn in range(0, 10**6, 12_345):
        assert order[turn] == int(permute(np.array([turn], dtype=np.uint64), 10**7, b"a/0/0")[0])
    assert sum(block.nbytes for block in order._blocks.values()) <= 2**19


def test_neighbours_are_scattered():
    """The correlation between turn and window is not larger than chance (|r| < 5 sigma)."""
    n = 4000
    image = permute(np.arange(n, dtype=np.uint64), n, b"key").astype(float)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 5 / np.sqrt(n)


def permutations_of(n: int, seeds: int) -> np.ndarray:
    """Return the windows at the first turns (all turns up to 8 windows) with many seeds, ``[seeds, turns]``."""
    first = np.arange(min(n, 8), dtype=np.uint64)
    found = [permute(first, n, f"fingerprint/{seed}/0".encode()) for seed in range(seeds)]
    return np.array(found).astype(np.int64)


def numpy_permutations(n: int, seeds: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(n)[:8] for _ in range(seeds)])


def p_value(cell_N: np.ndarray, cells: int) -> float:
    """Return the p-value of Pearson's chi-square test: all cells are equally likely."""
    return float(stats.chisquare(np.bincount(cell_N, minlength=cells)).pvalue)


def p_values(windows: np.ndarray, n: int) -> dict[str, float]:
    """Return the p-values of a shuffle: the permutations, the window of every turn, and the windows of two turns.

    ``windows`` is ``[seeds, turns]``. With many windows, two turns have a distance and, in eighths of the windows, a
    pair.
    """
    turns = windows.shape[1]
    found = {f"turn {turn}": p_value(windows[:, turn], n) for turn in range(turns)}
    if n <= 5:
        index = {permutation: k for k, permutation in enumerate(itertools.permutations(range(n)))}
        found["permutations"] = p_value(np.array([index[tuple(row)] for row in windows.tolist()]), len(index))
    for one, other in ((0, 1), (1, 0), (0, turns - 1)) if n > 2 else ():
        a, b = windows[:, one], windows[:, other]
        if n <= 16:
            pair = a * (n - 1) + b - (b > a)
            found[f"turns {one} and {other}"] = p_value(pair, n * (n - 1))
        else:
            shift = (b - a) % n - 1
            found[f"distance of turns {one} and {other}"] = p_value(shift, n - 1)
            if n % 8 == 0:
                # Two windows of one block are a little less likely than two windows of two blocks.
                a, b = a * 8 // n, b * 8 // n
                size = n // 8
                expected = np.full((8, 8), size * size / (n * (n - 1))) - np.eye(8) * size / (n * (n - 1))
                observed = np.bincount(a * 8 + b, minlength=64)
                found[f"blocks of turns {one} and {other}"] = float(
                    stats.chisquare(observed, expected.ravel() * len(a)).pvalue
                )
    return found


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 16, 63, 64, 65, 1000])
def test_the_shuffle_is_as_good_as_numpys(n):
    seeds = 8000 if n <= 64 else 1000
    for shuffle in (permutations_of, numpy_permutations):
        low = {name: p for name, p in p_values(shuffle(n, seeds), n).items() if p < 1e-4}
        assert not low, shuffle


@pytest.mark.parametrize("n", [3, 5, 8, 16])
def test_the_check_finds_a_biased_shuffle(n):
    """The wrong shuffle that swaps every place with any place, not with a later place."""
    windows = np.tile(np.arange(n), (8000, 1))
    seeds = np.arange(len(windows))
    for place, other in enumerate(np.random.default_rng(0).integers(n, size=(n, len(windows)))):
        windows[seeds, other], windows[:, place] = windows[:, place].copy(), windows[seeds, other].copy()
    assert min(p_values(windows[:, :8], n).values()) < 1e-6


def test_runs_of_the_first_version_keep_their_order():
    """The windows of version 1 are those of commit 5798fae. Beyond 64 windows, both versions have the same order."""
    old = WindowOrder(18, "fingerprint", 0, version=1)
    first_epoch = [1, 17, 16, 12, 7, 9, 8, 0, 13, 6, 15, 5, 14, 3, 2, 4, 11, 10]
    second_epoch = [6, 1, 2, 13, 11, 8, 16, 3, 15, 17, 12, 7, 9, 4, 10, 5, 0, 14]
    assert [old[turn] for turn in range(36)] == first_epoch + second_epoch
    for n in (65, 1000):
        orders = [WindowOrder(n, "fingerprint", 0, version=version) for version in (1, 2)]
        assert [orders[0][turn] for turn in range(2 * n)] == [orders[1][turn] for turn in range(2 * n)]
