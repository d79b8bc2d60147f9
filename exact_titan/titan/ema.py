"""The exponential moving average (EMA) of the weights.

1. The average starts as a copy of the weights before the first step.
2. Every optimizer step moves the average by ``1 - decay`` of its distance from the weights.
3. A checkpoint holds the average under the key :data:`KEY`, sharded as the weights are.
4. A validation moves the average into the model, and then restores the weights (:meth:`WeightAverage.in_model`).

The average is float32 in all precisions, because bfloat16 rounds away a change of ``1 - decay``. torch's
``AveragedModel`` copies the model, and FSDP2 refuses such a copy. Only its update rule is used here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchtitan.components.checkpointer.utils import canonical_fqn

KEY = "ema"
"""The key of the average in a checkpoint. The names of the weights follow after a dot."""


@dataclass(kw_only=True, slots=True)
class EmaConfig:
    """The exponential moving average of the weights."""

    decay: float = 0.0
    """Decay of the moving average of the weights at every optimizer step, such as 0.99. The average covers about the
    last 1 / (1 - decay) steps. Every validation also evaluates the average. 0: no average."""


class WeightAverage(Stateful):
    """The EMA of the weights of a model.

    Args:
        decay: factor of the average at every step, 0 or more and below 1.
        model_parts: the model, sharded or not, with its first weights or without.
        before_exchange: called before the weights in the model change outside of a step. A save may still copy them.

    Attributes:
        started: whether the average has a value, from :meth:`start` or from a checkpoint.
    """

    def __init__(self, decay: float, model_parts: list[nn.Module], *, before_exchange: Callable[[], None]) -> None:
        self._model_parts = model_parts
        self._before_exchange = before_exchange
        self._update = get_ema_multi_avg_fn(decay)
        # A tied weight has one name here. FSDP2 may give a parameter another storage at the first forward pass, so only
        # the parameters themselves are kept.
        self._parameters = {
            canonical_fqn(name): parameter for model in model_parts for name, parameter in model.named_parameters()
        }
        self._average = {name: torch.empty_like(one, dtype=torch.float32) for name, one in self._parameters.items()}
        self.started = False

    def start(self) -> None:
        """Start the average from the weights in the model."""
        for average, weight in zip(self._average.values(), self._weights(), strict=True):
            average.copy_(weight)
        self.started = True

    def update(self) -> None:
        """Move the average towards the weights after an optimizer step."""
        self._update(list(self._average.values()), [weight.float() for weight in self._weights()], 0)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the average into the model, and restore the weights bit for bit at the end.

        Memory inside the context: one more copy of this rank's shard of the weights.
        """
        self._before_exchange()
        self._reshard()
        weights = self._weights()
        kept = [weight.clone() for weight in weights]
        try:
            for weight, average in zip(weights, self._average.values(), strict=True):
                weight.copy_(average)
            yield
        finally:
            self._reshard()
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)

    def _weights(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self._parameters.values()]

    def _reshard(self) -> None:
        """Discard gathered weights. After a pass without gradients FSDP2 keeps some of them for the next pass."""
        for model in self._model_parts:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def state_dict(self) -> dict[str, Any]:
        """Return the average by the names of the weights: float32, sharded as the weights are."""
        return self._average

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average of a checkpoint."""
        for name, average in self._average.items():
            average.copy_(state_dict[name])
        self.started = True
