import itertools

import pytest
import torch
from torch import nn
from torchtitan.components.optimizer import LRSchedulersContainer

from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.schedule import HeldSchedule


def rates(config: LRSchedulersContainer.Config, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    optimizers = AdamW(AdamW.Config(lr=1.0, implementation="for-loop"), model_parts=[nn.Linear(2, 2)])
    schedule = config.build(optimizers=optimizers, training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(optimizers.optimizers[0].param_groups[0]["lr"])
        optimizers.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("decay_type", "decay_ratio", "floor", "warmup", "total"),
    itertools.product(["linear", "sqrt", "cosine"], [None, 0.0, 0.5, 1.0], [0.0, 0.1], [0, 2, 9], [1, 6]),
)
def test_a_schedule_equals_torchtitans_and_holds_its_last_rate(decay_type, decay_ratio, floor, warmup, total):
    options = {"decay_type": decay_type, "decay_ratio": decay_ratio, "min_lr_factor": floor, "warmup_steps": warmup}
    stock = rates(LRSchedulersContainer.Config(**options, total_steps=total), total)
    held = rates(HeldSchedule.Config(**options, total_steps=total), total + 7)
    assert held == stock + [stock[-1]] * 7
    assert held[-1] > 0


def test_a_schedule_without_total_steps_is_torchtitans():
    options = {"decay_ratio": 0.5, "warmup_steps": 2}
    assert rates(HeldSchedule.Config(**options), 8) == rates(LRSchedulersContainer.Config(**options), 8)


def test_a_resumed_run_that_is_longer_continues_with_the_constant_rate():
    torch.manual_seed(0)
    options = {"decay_ratio": 0.0, "warmup_steps": 2, "total_steps": 6}
    optimizers = AdamW(AdamW.Config(lr=1.0, implementation="for-loop"), model_parts=[nn.Linear(2, 2)])
    schedule = HeldSchedule.Config(**options).build(optimizers=optimizers, training_steps=12)
    schedule.load_state_dict({"last_epoch": 6})
    assert schedule.get_metrics() == {"lr/AdamW": 1.0}
