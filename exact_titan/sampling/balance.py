"""Level attention work: which windows of an optimizer step go to which rank, in which microbatch.

Windows are equally long, but attention costs the sum of their squared document lengths, and in every microbatch all
ranks wait for the one with the most: their layers gather and reduce together.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from exact_titan.dataset.dataset import PackedDataset


def attention_work(dataset: PackedDataset, k: int) -> int:
    """Sum of the squared segment lengths of window ``k``, padding included: query-key pairs without a mask.

    It is read from the shard's index each time, so that nothing is kept, however many windows there are.
    """
    length_S = dataset.segment_lengths(k).astype(np.int64)
    return int((length_S**2).sum() + (dataset.window - length_S.sum()) ** 2)


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
