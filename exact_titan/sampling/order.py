"""The one global order of windows: a keyed permutation, so that any place in any epoch is found without a list.

A Feistel network over the smallest power of two that holds all windows, walked until the result is one of them (Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Mixing: the finaliser of SplitMix64.
"""

import hashlib

import numpy as np

_ROUNDS = 8
_BLOCK = 1024


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, n: int, key: bytes) -> np.ndarray:
    """Images of ``index`` (uint64, each below ``n``) under the permutation of ``0 … n-1`` that ``key`` names."""
    bits = max(2, (n - 1).bit_length())
    keys = [
        np.uint64(int.from_bytes(hashlib.sha256(key + bytes([round_])).digest()[:8], "little"))
        for round_ in range(_ROUNDS)
    ]

    def scramble(x: np.ndarray) -> np.ndarray:
        low_bits = bits // 2
        for round_key in keys:
            low = x & np.uint64((1 << low_bits) - 1)
            high = x >> np.uint64(low_bits)
            high_bits = bits - low_bits
            high ^= _mix(low + round_key) & np.uint64((1 << high_bits) - 1)
            x = low << np.uint64(high_bits) | high
            low_bits = high_bits
        return x

    with np.errstate(over="ignore"):
        out = scramble(index.astype(np.uint64))
        while (outside := out >= n).any():
            out[outside] = scramble(out[outside])
    return out


class WindowOrder:
    """Which window stands at place ``k`` of a run: a pure function of (fingerprint, seed, k), O(1) in time and memory.

    Every epoch is a permutation of its own of all windows.

    Args:
        n: number of windows.
        fingerprint: the packed dataset's.
        seed: of the run.
    """

    def __init__(self, n: int, fingerprint: str, seed: int) -> None:
        self.n = n
        self._name = f"{fingerprint}/{seed}/"
        self._block: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.uint64))

    def __getitem__(self, k: int) -> int:
        """Window at place ``k >= 0`` of the run."""
        epoch, place = divmod(k, self.n)
        block, offset = divmod(place, _BLOCK)
        # A block at a time, because one numpy call costs as much for a thousand places as for one.
        name = epoch * (self.n // _BLOCK + 1) + block
        if self._block[0] != name:
            start = block * _BLOCK
            places = np.arange(start, min(start + _BLOCK, self.n), dtype=np.uint64)
            self._block = (name, permute(places, self.n, f"{self._name}{epoch}".encode()))
        return int(self._block[1][offset])
