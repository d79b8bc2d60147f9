"""Health metrics of a run: the time of the parts of a step, the imbalance of the ranks, and the remaining work."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from exact_titan.sampling.balance import Imbalance
from exact_titan.titan.step_clock import PARTS, StepClock


class Health:
    """The health scalars of all ranks, for the steps between two log steps.

    - ``step_time/<part>(s)``: seconds a step on the slowest rank.
    - ``imbalance/attention``: attention work of the rank with the most work, divided by the mean.
    - ``imbalance/data(s)``: wait of the slowest rank for data, minus the mean wait, in seconds a step.
    - ``progress/tokens_left``: tokens until the end of the run.
    - ``progress/hours_left``: hours until the end of the run, at the mean pace of this process since its first log
      step.

    Args:
        clock: the step clock of this rank.
        imbalance: the imbalance that the dataloader measures. The dataloader knows the work of all ranks.
        steps: optimizer steps of the run.
        tokens_per_step: tokens of a step over all ranks.
    """

    def __init__(self, clock: StepClock, imbalance: Imbalance, *, steps: int, tokens_per_step: int) -> None:
        self._clock, self._imbalance = clock, imbalance
        self._steps, self._tokens_per_step = steps, tokens_per_step
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._first: tuple[int, float] | None = None

    def local_times(self) -> list[float]:
        """Return the times of this rank at the rank's indices, and zeros for all other ranks.

        The sum of these lists over the ranks has the times of all ranks.
        """
        times = [0.0] * (self._ranks * len(PARTS))
        times[self._rank * len(PARTS) : (self._rank + 1) * len(PARTS)] = self._clock.take()
        return times

    def scalars(self, step: int, summed: Sequence[float]) -> dict[str, float]:
        """Return tags and values at a log step. ``summed`` is the sum of :meth:`local_times` over the ranks."""
        now = time.perf_counter()
        times_RP = torch.tensor(summed, dtype=torch.float64).view(self._ranks, len(PARTS))
        slowest_P = times_RP.amax(dim=0)
        scalars = {f"step_time/{part}(s)": slowest for part, slowest in zip(PARTS, slowest_P.tolist(), strict=True)}
        scalars["imbalance/attention"] = self._imbalance.take()
        scalars["imbalance/data(s)"] = float((slowest_P - times_RP.mean(dim=0))[PARTS.index("data")])
        scalars["progress/tokens_left"] = (self._steps - step) * self._tokens_per_step
        if self._first is None:
            self._first = (step, now)
        else:
            first_step, first_time = self._first
            pace = (now - first_time) / (step - first_step)
            scalars["progress/hours_left"] = (self._steps - step) * pace / 3600
        return scalars
