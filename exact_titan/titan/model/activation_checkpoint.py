"""Selective activation checkpointing that saves the output of every attention kernel, not only of torch's kernel."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC

from exact_titan.titan.model.attention import forward_ops


class AttentionSavingAC(SelectiveAC):
    """torchtitan's selective activation checkpointing, extended by the attention of flash-attn and of the CPU.

    torchtitan's own class runs these kernels twice.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(SelectiveAC.Config):
        pass

    def get_save_ops(self) -> set:
        """Return torchtitan's operators and the operators of :func:`forward_ops`."""
        return super().get_save_ops() | set(forward_ops().values())


ActivationCheckpointingConfig = (
    Annotated[AttentionSavingAC.Config, tyro.conf.subcommand("selective")]
    | Annotated[FullAC.Config, tyro.conf.subcommand("full")]
    | Annotated[MemoryBudgetAC.Config, tyro.conf.subcommand("memory-budget")]
    | Annotated[None, tyro.conf.subcommand("none")]
)
"""torchtitan's subcommands. ``selective`` is :class:`AttentionSavingAC`."""
