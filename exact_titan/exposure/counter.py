"""The bucket counters on the training device: prior, count, all-reduce, checkpoint."""

from typing import Any

import torch
import torch.distributed as dist

from exact_titan.exposure.context import Buckets

PRIOR_WINDOWS = 1000
"""Largest weight of the packed dataset in refreshed weights, in windows of training."""


def prior_counts(counts: torch.Tensor, *, window: int) -> torch.Tensor:
    """Return the counts that refreshed weights start from: a packed dataset's counts, as much as 1,000 windows.

    All targets of a long document fall into few buckets. A few windows of training therefore say little about the tail:
    a bucket of every tenth window may have no target in the first ten windows, and its weight would be far too large or
    too small. The prior is the dataset's distribution. The targets of the training are added to the prior. The weights
    move to the distribution of the training after some thousand windows, for any number of ranks and any number of
    steps between two refreshes.

    Args:
        counts: supervised targets per bucket of the dataset, integer ``[n]``.
        window: window length, in tokens.

    Returns:
        float64 ``[n]``. The sum is at most ``PRIOR_WINDOWS * window``. The counts of a smaller dataset do not change.
    """
    counts_n = counts.to(torch.float64)
    return counts_n * (PRIOR_WINDOWS * window / counts_n.sum()).clamp(max=1.0)


class ExposureCounter:
    """Counts the supervised targets per bucket during training.

    1. :meth:`add` adds the targets of a batch to the counts of this rank (``pending``).
    2. :meth:`start_reduce` starts the all-reduce of the pending counts. The all-reduce runs during a training step.
    3. :meth:`finish_reduce` adds the sum over all ranks to the shared total (``reduced``).

    :meth:`reduce` does steps 2 and 3 together. All tensors stay on the device of the buffers. The host does not wait
    for the device.

    Args:
        buckets: the buckets.
        device: device of the buffers.
    """

    def __init__(self, buckets: Buckets, device: torch.device | str = "cpu") -> None:
        self.buckets = buckets
        self.reduced = torch.zeros(len(buckets), dtype=torch.int64, device=device)
        self.pending = torch.zeros_like(self.reduced)
        self._in_flight: tuple[torch.Tensor, dist.Work | None] | None = None
        self._local_in_flight = torch.zeros_like(self.reduced)

    @property
    def counts(self) -> torch.Tensor:
        """int64 ``[n]``: the shared total of the last reduction plus the counts of this rank since then."""
        if self._in_flight is None:
            return self.reduced + self.pending
        return self.reduced + self.pending + self._local_in_flight

    def add(self, context: torch.Tensor, valid: torch.Tensor) -> None:
        """Count the targets of a batch.

        Args:
            context: effective context of every target, int64, any shape (:func:`effective_context`).
            valid: True where the target is supervised, same shape.
        """
        self.add_index(self.buckets.index(context), valid)

    def add_index(self, index: torch.Tensor, valid: torch.Tensor) -> None:
        """Count the targets of a batch as :meth:`add` does, from the bucket of every target (:meth:`Buckets.index`)."""
        # An extra slot takes the unsupervised targets. An index_add_ of integers is exact in any order.
        slots = torch.where(valid, index, len(self.buckets)).reshape(-1)
        counted = torch.zeros(len(self.buckets) + 1, dtype=torch.int64, device=slots.device)
        counted.index_add_(0, slots, torch.ones_like(slots))
        self.pending += counted[:-1]

    def start_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Start the sum of the pending counts of all ranks. A reduction that was started before is finished first."""
        self.finish_reduce()
        self._local_in_flight = self.pending.clone()
        total = self.pending.clone()
        self.pending.zero_()
        work = dist.all_reduce(total, group=group, async_op=True) if dist.is_initialized() else None
        self._in_flight = (total, work)

    def finish_reduce(self) -> bool:
        """Add the sum of :meth:`start_reduce` to the shared total. Return False if no reduction was started."""
        if self._in_flight is None:
            return False
        total, work = self._in_flight
        if work is not None:
            work.wait()
        self.reduced += total
        self._in_flight = None
        return True

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add the pending counts of all ranks to the shared total. All ranks of ``group`` must call the method."""
        self.start_reduce(group)
        self.finish_reduce()

    def state_dict(self) -> dict[str, Any]:
        """Return ``counts``, int64 ``[n]``. The counts of all ranks are equal only directly after :meth:`reduce`."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved shared total.

        Raises:
            ValueError: if the total was counted in other buckets.
        """
        counts = state["counts"]
        if counts.shape != self.reduced.shape:
            raise ValueError(
                f"the state counts {len(counts)} buckets, a window of {self.buckets.window} has {len(self.buckets)}"
            )
        self._in_flight = None
        self.reduced.copy_(counts)
        self.pending.zero_()
