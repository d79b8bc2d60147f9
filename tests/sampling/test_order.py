import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_neighbours_are_scattered():
    """The correlation between turn and window is not larger than chance (|r| < 5 sigma)."""
    n = 4000
    image = permute(np.arange(n, dtype=np.uint64), n, b"key").astype(float)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 5 / np.sqrt(n)
