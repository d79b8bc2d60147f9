import torch

from exact_titan.exposure.draws import splitmix64, uniform

MASK = 2**64 - 1


def python_splitmix64(seed: int, number: int) -> int:
    """The algorithm in Python's integers, with a state that moves by the constant for every number."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_published_numbers_of_the_seed_1234567():
    numbers = splitmix64(torch.tensor(1234567), torch.arange(5)).tolist()
    assert [number & MASK for number in numbers] == [
        *[6457827717110365317, 3203168211198807973, 9817491932198370423],
        *[4593380528125082431, 16408922859458223821],
    ]


def test_a_number_is_a_function_of_seed_place_and_index():
    places = torch.tensor([0, 7, 2**40])
    for seed in (0, 3, 2**63 - 1):
        numbers = uniform(seed, places, 50)
        first = python_splitmix64(0, seed)
        for row, place in enumerate(places.tolist()):
            window = python_splitmix64(first, place)
            assert numbers[row].tolist() == [(python_splitmix64(window, i) >> 11) / 2**53 for i in range(50)]
        assert torch.equal(uniform(seed, places.flip(0), 50).flip(0), numbers)


def test_numbers_are_uniform_and_windows_and_seeds_are_unrelated():
    one, other = uniform(0, torch.arange(64), 4096), uniform(1, torch.arange(64), 4096)
    assert one.min() >= 0
    assert one.max() < 1
    count = one.numel()
    shares = torch.histc(one.float(), bins=32, min=0, max=1) / count
    # Five standard deviations of a share of 1/32.
    assert (shares - 1 / 32).abs().max() < 5 * (1 / 32 / count) ** 0.5
    for a, b in ((one, other), (one[:-1], one[1:]), (one[:, :-1], one[:, 1:])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 5 / a.numel() ** 0.5
