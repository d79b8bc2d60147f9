"""Health metrics of a run: the time of the parts of a step, the imbalance of the ranks, and the remaining work."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from exact_titan.runs.records import Pace
from exact_titan.sampling.balance import Imbalance
from exact_titan.titan.step_clock import PARTS, StepClock


class Health:
    """The health of all ranks, for the steps between two log steps (:class:`Pace`).

    Args:
        clock: the step clock of this rank.
        imbalance: the imbalance that the dataloader measures. The dataloader knows the work of all ranks.
        steps: optimizer steps of the run.
        tokens_per_step: tokens of a step over all ranks.

    Attributes:
        steps, tokens_per_step: the arguments.
    """

    def __init__(self, clock: StepClock, imbalance: Imbalance, *, steps: int, tokens_per_step: int) -> None:
        self._clock, self._imbalance = clock, imbalance
        self.steps, self.tokens_per_step = steps, tokens_per_step
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._first: tuple[int, float] | None = None

    def local_times(self) -> list[float]:
        """Return the times of this rank at the rank's indices, and zeros for all other ranks.

        The sum of these lists over the ranks has the times of all ranks.
        """
        times = [0.0] * (self._ranks * len(PARTS))
        times[self._rank * len(PARTS) : (self._rank + 1) * len(PARTS)] = self._clock.take()
        return times

    def pace(self, step: int, summed: Sequence[float]) -> Pace:
        """Return the values of a log step. ``summed`` is the sum of :meth:`local_times` over the ranks."""
        now = time.perf_counter()
        times_RP = torch.tensor(summed, dtype=torch.float64).view(self._ranks, len(PARTS))
        slowest_P = times_RP.amax(dim=0)
        steps_left = self.steps - step
        hours_left = None
        if self._first is None:
            self._first = (step, now)
        else:
            first_step, first_time = self._first
            hours_left = steps_left * (now - first_time) / (step - first_step) / 3600
        return Pace(
            step_seconds=dict(zip(PARTS, slowest_P.tolist(), strict=True)),
            imbalance_attention=self._imbalance.take(),
            imbalance_data_seconds=float((slowest_P - times_RP.mean(dim=0))[PARTS.index("data")]),
            tokens_left=steps_left * self.tokens_per_step,
            hours_left=hours_left,
        )
