"""The shuffled order of a dataset's windows: a keyed permutation, which needs no list of the windows.

- Up to :data:`SMALL` windows, the permutation sorts the windows by random 64-bit numbers. All permutations are equally
  likely.
- For more windows, the permutation is a Feistel network over the smallest power of two that is at least the number of
  windows. If a result is not a window, the network is applied again until the result is a window (cycle walking: Black
  and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The round function is the finaliser of SplitMix64.

The network is biased for few windows: chi-square tests of neighbouring places over a million keys find the bias up to
16 windows. Version 1 of the order had the network for every number of windows. A resume of a run of version 1 keeps
version 1.
"""

import hashlib
from collections import OrderedDict
from itertools import pairwise

import numpy as np

VERSION = 2
"""Version of the order of new runs."""

SMALL = 64
"""The versions differ for datasets of at most this number of windows."""

_ROUNDS = 8
_BLOCK = 4096
_MOST_BLOCKS = 16
"""Blocks in memory, 32 KiB each: the windows of a step of up to 60K windows."""


def permute(index: np.ndarray, n: int, key: bytes, version: int = VERSION) -> np.ndarray:
    """Return the images of ``index`` (uint64, each below ``n``) under the permutation of ``0 … n-1`` with ``key``."""
    if version > 1 and n <= SMALL:
        random_n = np.frombuffer(hashlib.shake_256(key).digest(8 * n), dtype="<u8")
        return np.argsort(random_n, kind="stable").astype(np.uint64)[index]
    return _network(index, n, key)


def _network(index: np.ndarray, n: int, key: bytes) -> np.ndarray:
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


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class WindowOrder:
    """The window at every turn of a dataset: a pure function of (fingerprint, seed, turn), O(1) in time and memory.

    The order keeps the windows of the last turns in memory, up to 512 KiB for any number of windows.

    Every epoch is a new permutation of all windows.

    Args:
        n: number of windows of the dataset.
        fingerprint: fingerprint of the packed dataset.
        seed: seed of the run.
        version: version of the order, 1 or :data:`VERSION`.
    """

    def __init__(self, n: int, fingerprint: str, seed: int, version: int = VERSION) -> None:
        self.n = n
        self._name = f"{fingerprint}/{seed}/"
        self._version = version
        self._blocks: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __getitem__(self, turn: int) -> int:
        """Return the window at ``turn >= 0`` of the dataset."""
        epoch, index = divmod(turn, self.n)
        block, offset = divmod(index, _BLOCK)
        return int(self._block(epoch, block)[offset])

    def windows(self, turn_N: np.ndarray) -> np.ndarray:
        """Return the windows at turns that are close to each other, such as the turns of a step: int64 ``[N]``."""
        epoch_N, index_N = np.divmod(turn_N, self.n)
        block_N, offset_N = np.divmod(index_N, _BLOCK)
        window_N = np.empty(len(turn_N), dtype=np.int64)
        # The turns of a step ascend, so the turns of a block follow each other.
        changes = np.flatnonzero(np.diff(block_N, prepend=-1) | np.diff(epoch_N, prepend=-1)).tolist()
        for begin, end in pairwise([*changes, len(turn_N)]):
            window_N[begin:end] = self._block(int(epoch_N[begin]), int(block_N[begin]))[offset_N[begin:end]]
        return window_N

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """Return the windows of a whole block. A block of 4,096 turns takes five times as long as one turn."""
        found = self._blocks.get((epoch, block))
        if found is None:
            index_B = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, self.n), dtype=np.uint64)
            found = permute(index_B, self.n, f"{self._name}{epoch}".encode(), self._version)
            self._blocks[epoch, block] = found
            if len(self._blocks) > _MOST_BLOCKS:
                self._blocks.popitem(last=False)
        return found
