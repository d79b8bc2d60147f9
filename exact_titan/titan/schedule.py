"""torchtitan's learning-rate schedule for runs that are longer than the schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.optim.lr_scheduler import LambdaLR
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
from torchtitan.tools.logging import logger


class HeldSchedule(LRSchedulersContainer):
    """torchtitan's schedule, which holds the rate of its last step until the end of the run.

    torchtitan's own formulas return negative rates after ``total_steps``, or stop at an assertion.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        def build(self, *, optimizers: OptimizersContainer, training_steps: int) -> LRSchedulersContainer:
            """Build torchtitan's schedules for ``optimizers``, held after the last step of the schedule."""
            schedules = LRSchedulersContainer.Config.build(self, optimizers=optimizers, training_steps=training_steps)
            total_steps = training_steps if self.total_steps is None else self.total_steps
            if total_steps < training_steps:
                logger.warning(
                    f"lr_scheduler.total_steps is {total_steps}: the run holds the learning rate of step {total_steps} "
                    f"until step {training_steps}"
                )
            for schedule in schedules:
                assert isinstance(schedule, LambdaLR)
                schedule.lr_lambdas = [partial(_held, factor, total_steps - 1) for factor in schedule.lr_lambdas]
            return schedules


def _held(factor: Callable[[int], float], last: int, step: int) -> float:
    """Return the factor of ``step``, counted from 0. After step ``last``: the factor of step ``last``."""
    return factor(min(step, last))
