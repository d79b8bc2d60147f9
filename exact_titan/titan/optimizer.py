"""AdamW with command line options. torchtitan keeps AdamW's options in a dictionary that has no command line option."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig


class AdamW(OptimizersContainer):
    """torchtitan's optimizer container with one AdamW group for all parameters."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        lr: float = 2e-5
        """Learning rate at the end of the warmup."""

        beta1: float = 0.9
        """Decay of the first moment."""

        beta2: float = 0.95
        """Decay of the second moment."""

        eps: float = 1e-8
        """Number added to the square root of the second moment."""

        weight_decay: float = 0.1
        """Decoupled weight decay of all parameters."""

    def __init__(self, config: Config, *, model_parts: list[nn.Module]) -> None:
        group = ParamGroupConfig(
            pattern=".*",
            optimizer_name="AdamW",
            optimizer_kwargs={
                "lr": config.lr,
                "betas": (config.beta1, config.beta2),
                "eps": config.eps,
                "weight_decay": config.weight_decay,
            },
        )
        own = copy.copy(config)
        own.param_groups = [group]
        super().__init__(own, model_parts=model_parts)


def apply_options(schedulers: LRSchedulersContainer, config: OptimizersContainer.Config) -> None:
    """Set the config's options in the parameter groups after the load of a checkpoint.

    The load replaces the options of every parameter group by the options of the checkpoint. Without this function a new
    learning rate would act one step late, and new betas, eps and weight decay would never act. An optimizer of another
    config keeps the options of its checkpoint, except for the learning rate of the schedule.
    """
    for scheduler in schedulers:
        for group, base, rate in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.get_last_lr(), strict=True
        ):
            if isinstance(config, AdamW.Config):
                group |= {
                    "betas": (config.beta1, config.beta2),
                    "eps": config.eps,
                    "weight_decay": config.weight_decay,
                }
            group["initial_lr"] = base
            # A compiled or capturable optimizer keeps its learning rate in a tensor.
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
