"""Bucket counters that live on the training device: count, all-reduce, checkpoint."""

from typing import Any

import torch
import torch.distributed as dist

from exact_titan.exposure.context import Buckets


class ExposureCounter:
    """Counts supervised targets per bucket while training.

    Targets counted since the last reduction are this rank's own (``pending``); a reduction adds every rank's to the
    shared total. :meth:`start_reduce` and :meth:`finish_reduce` split it in two, so that the all-reduce runs beside a
    training step; :meth:`reduce` does both at once. Everything stays on the device of the buffers, and nothing waits
    for it.

    Args:
        buckets: the buckets to count in.
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
        """int64 ``[n]``: the shared total of the last reduction plus what this rank has counted since."""
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
        """As :meth:`add`, with the bucket of every target already at hand."""
        # One more slot takes the unsupervised targets. An index_add_ of integers is exact in any order.
        slots = torch.where(valid, index, len(self.buckets)).reshape(-1)
        counted = torch.zeros(len(self.buckets) + 1, dtype=torch.int64, device=slots.device)
        counted.index_add_(0, slots, torch.ones_like(slots))
        self.pending += counted[:-1]

    def start_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Start summing all ranks' pending counts; a reduction under way is finished first."""
        self.finish_reduce()
        self._local_in_flight = self.pending.clone()
        total = self.pending.clone()
        self.pending.zero_()
        work = dist.all_reduce(total, group=group, async_op=True) if dist.is_initialized() else None
        self._in_flight = (total, work)

    def finish_reduce(self) -> bool:
        """Add the sum that :meth:`start_reduce` began to the shared total; False if none was under way."""
        if self._in_flight is None:
            return False
        total, work = self._in_flight
        if work is not None:
            work.wait()
        self.reduced += total
        self._in_flight = None
        return True

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum all ranks' pending counts into the shared total: a collective that every rank of ``group`` calls."""
        self.start_reduce(group)
        self.finish_reduce()

    def state_dict(self) -> dict[str, Any]:
        """``counts``: int64 ``[n]``. Equal on all ranks only right after :meth:`reduce`."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the shared total that was saved.

        Raises:
            ValueError: if it was counted in other buckets.
        """
        counts = state["counts"]
        if counts.shape != self.reduced.shape:
            raise ValueError(
                f"the state counts {len(counts)} buckets, a window of {self.buckets.window} has {len(self.buckets)}"
            )
        self._in_flight = None
        self.reduced.copy_(counts)
        self.pending.zero_()
