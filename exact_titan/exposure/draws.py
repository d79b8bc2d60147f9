"""Random numbers that are a pure function of a key: the same on every device, rank and start of a run.

Source: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Number
``k`` of the stream with the seed ``s`` is ``mix64(s + (k + 1) * GAMMA)``, a function of ``s`` and ``k``. All arithmetic
is modulo 2**64. An int64 holds the 64 bits, because torch has no shift of a uint64.
"""

import torch

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def splitmix64(seed: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return number ``number`` of the SplitMix64 stream with the seed ``seed``: 64 bits as an int64.

    Args:
        seed, number: int64. Their shapes broadcast.
    """
    z = seed + (number + 1) * _GAMMA
    z = (z ^ _shifted(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shifted(z, 27)) * _MULTIPLIER_2
    return z ^ _shifted(z, 31)


def uniform(seed: int, places_B: torch.Tensor, length: int, *, first: int = 0) -> torch.Tensor:
    """Return a number in [0, 1) for some indices of some windows, a function of (seed, place, index) alone.

    The stream of ``seed`` gives each place a seed, and the stream of that seed gives each index a number.

    Args:
        seed: ``0 … 2**63 - 1``.
        places_B: place in the run of each window, int64 ``[B]``.
        length: number of indices (L).
        first: first index in the window.

    Returns:
        float64 ``[B, L]`` on the device of ``places_B``, a multiple of 2**-53.
    """
    device = places_B.device
    # The seed is a number of the stream 0. Runs with consecutive seeds therefore have unrelated streams.
    seeds = splitmix64(torch.zeros((), dtype=torch.int64, device=device), torch.full_like(places_B, seed))
    window_B = splitmix64(seeds, places_B)
    bits_BL = splitmix64(window_B[:, None], torch.arange(first, first + length, device=device))
    return _shifted(bits_BL, 11).to(torch.float64) * 2.0**-53


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Return ``z >> bits`` of the 64 bits without the sign: torch shifts copies of the sign in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
