"""Level attention work: which windows of an optimizer step go to which rank, in which microbatch.

Windows are equally long, but attention costs the sum of their squared document lengths, and in every microbatch all
ranks wait for the one with the most: their layers gather and reduce together.
"""

import heapq
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from exact_titan.data.dataset import PackedDataset
from exact_titan.data.shards import Shard


class AttentionWork:
    """Sum of the squared segment lengths of a packed dataset's windows, padding included, as attention runs over it.

    All of a shard's are worked out when the first is asked for, from its index alone: about a millisecond for 2,048
    windows of 16K, and 8 bytes a window from then on.

    Args:
        dataset: the split whose windows are asked for.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        self._dataset = dataset
        self._first_windows = np.array([0, *accumulate(shard.windows for shard in dataset.record.shards)])
        self._work_N: list[np.ndarray | None] = [None] * len(dataset.record.shards)

    def __getitem__(self, k: int) -> int:
        """Of window ``k``, in query-key pairs without a mask."""
        number = int(np.searchsorted(self._first_windows, k, side="right")) - 1
        work_N = self._work_N[number]
        if work_N is None:
            work_N = self._work_N[number] = self._of_shard(number)
        return work_N.item(k - self._first_windows[number])

    def _of_shard(self, number: int) -> np.ndarray:
        shard = Shard(self._dataset.folder / self._dataset.record.shards[number].file)
        length_S, first_N = shard.segment_length.astype(np.int64), shard.window_segments[:-1]
        padding_N = self._dataset.window - np.add.reduceat(length_S, first_N)
        if length_S.min() < 1 or padding_N.min() < 0:
            raise ValueError(f"its shard has segments that no window of {self._dataset.window} holds")
        return np.add.reduceat(length_S**2, first_N) + padding_N**2


class Imbalance:
    """How much more attention work than the mean of the ranks the heaviest had, in the rounds since it was taken."""

    def __init__(self) -> None:
        self._heaviest = self._mean = 0.0

    def add(self, work_SR: np.ndarray) -> None:
        """Add rounds; ``work_SR`` is the work of each rank in each of them."""
        self._heaviest += float(work_SR.max(axis=1).sum())
        self._mean += float(work_SR.mean(axis=1).sum())

    def take(self) -> float:
        """Sum of the rounds' heaviest over that of their means, at least 1 and 1 for none, and begin again."""
        ratio = self._heaviest / self._mean if self._mean else 1.0
        self._heaviest = self._mean = 0.0
        return ratio


def deal(work_N: Sequence[int], *, ranks: int, batch: int) -> np.ndarray:
    """Deal windows out so that in every microbatch, and in all of them together, the ranks have level work.

    Longest processing time first with equal counts (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969), three
    times over: windows into microbatches, the heaviest first into the lightest with room; microbatches in the order of
    their work into rounds, one for each rank, which makes the sum of the rounds' heaviest the least there is; and the
    heaviest of a round to the rank with the least so far. Ties go to the earlier one: the result depends on the
    arguments alone.

    Args:
        work_N: work of each window; N is a multiple of ``ranks * batch``.
        ranks: how many share a round.
        batch: windows of a microbatch.

    Returns:
        Indices into ``work_N``, each once: int64 ``[rounds, ranks, batch]``, ascending within a microbatch.
    """
    microbatches: list[list[int]] = [[] for _ in range(len(work_N) // batch)]
    lightest = [(0, number) for number in range(len(microbatches))]
    for window in sorted(range(len(work_N)), key=lambda window: -work_N[window]):
        work, number = heapq.heappop(lightest)
        microbatches[number].append(window)
        if len(microbatches[number]) < batch:
            heapq.heappush(lightest, (work + work_N[window], number))
    work_M = [sum(work_N[window] for window in microbatch) for microbatch in microbatches]
    heaviest_first = sorted(range(len(microbatches)), key=lambda number: -work_M[number])

    dealt = np.empty((len(microbatches) // ranks, ranks, batch), dtype=np.int64)
    total_R = [0] * ranks
    for round_, first in enumerate(range(0, len(microbatches), ranks)):
        least_first = sorted(range(ranks), key=lambda rank: total_R[rank])
        for rank, number in zip(least_first, heaviest_first[first : first + ranks], strict=True):
            dealt[round_, rank] = sorted(microbatches[number])
            total_R[rank] += work_M[number]
    return dealt
