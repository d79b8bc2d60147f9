"""Balance the attention work: assign the windows of an optimizer step to ranks and microbatches.

All windows have the same length, but the attention work of a window is the sum of its squared document lengths. In
every microbatch all ranks wait for the rank with the most work, because the ranks gather and reduce every layer
together.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from exact_titan.dataset.dataset import PackedDataset


def attention_work(dataset: PackedDataset, k: int) -> int:
    """Return the sum of the squared segment lengths of window ``k``: the number of query-key pairs without a mask.

    Padding counts as a segment. The function reads the shard's index at every call, and keeps nothing in memory for
    any number of windows.
    """
    length_S = dataset.segment_lengths(k).astype(np.int64)
    return int((length_S**2).sum() + (dataset.window - length_S.sum()) ** 2)


class Imbalance:
    """The ratio of the heaviest rank's attention work to the mean over the ranks, since the last :meth:`take`.

    A *round* is one microbatch of every rank.
    """

    def __init__(self) -> None:
        self._heaviest = self._mean = 0.0

    def add(self, work_SR: np.ndarray) -> None:
        """Add S rounds of R ranks. ``work_SR`` is the work of each rank in each round."""
        self._heaviest += float(work_SR.max(axis=1).sum())
        self._mean += float(work_SR.mean(axis=1).sum())

    def take(self) -> float:
        """Return the ratio, and reset the sums.

        The ratio is the sum of the rounds' maxima divided by the sum of the rounds' means. The ratio is at least 1.
        Without rounds the ratio is 1.
        """
        ratio = self._heaviest / self._mean if self._mean else 1.0
        self._heaviest = self._mean = 0.0
        return ratio


def deal(work_N: Sequence[int] | np.ndarray, *, ranks: int, batch: int) -> np.ndarray:
    """Assign windows to ranks with about equal work per rank, in every microbatch and in the whole optimizer step.

    The algorithm is longest processing time first with equal counts (Graham, "Bounds on Multiprocessing Timing
    Anomalies", 1969), in three steps:

    1. Windows go into microbatches: the heaviest window first, into the lightest microbatch with room.
    2. Microbatches, sorted by work, go into rounds of one microbatch for each rank. This order minimizes the sum of
       the rounds' maxima.
    3. In each round, the heaviest microbatch goes to the rank with the least work so far.

    In a tie, the earlier window, microbatch or rank is first. The result depends only on the arguments.

    Args:
        work_N: work of each window. N is a multiple of ``ranks * batch``. The sum of all windows fits the dtype.
        ranks: number of ranks.
        batch: number of windows in a microbatch.

    Returns:
        Indices of ``work_N``, each index once: int64 ``[rounds, ranks, batch]``, ascending within a microbatch.
    """
    work_N = np.asarray(work_N)
    windows_MB = _microbatches(work_N, batch)
    work_M = work_N[windows_MB].sum(axis=1)
    windows_MB.sort(axis=1)
    heaviest_first_M = np.argsort(-work_M, kind="stable")

    dealt = np.empty((len(work_M) // ranks, ranks, batch), dtype=np.int64)
    total_R = np.zeros(ranks, dtype=work_M.dtype)
    for round_, numbers_R in enumerate(heaviest_first_M.reshape(-1, ranks)):
        least_first_R = np.argsort(total_R, kind="stable")
        dealt[round_, least_first_R] = windows_MB[numbers_R]
        total_R[least_first_R] += work_M[numbers_R]
    return dealt


def _microbatches(work_N: np.ndarray, batch: int) -> np.ndarray:
    """Return the windows of every microbatch (step 1 of :func:`deal`), int64 ``[microbatches, batch]``."""
    heaviest_first_N = np.argsort(-work_N, kind="stable")
    if batch == 1:
        return heaviest_first_N[:, None]
    work: list[int] = work_N.tolist()
    microbatches: list[list[int]] = [[] for _ in range(len(work) // batch)]
    lightest = [(0, number) for number in range(len(microbatches))]
    for window in heaviest_first_N.tolist():
        total, number = heapq.heappop(lightest)
        microbatches[number].append(window)
        if len(microbatches[number]) < batch:
            heapq.heappush(lightest, (total + work[window], number))
    return np.array(microbatches)
