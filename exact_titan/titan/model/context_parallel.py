"""Context parallelism for document attention: an all-to-all exchanges sequence for heads (DeepSpeed Ulysses,
arXiv 2309.14509).

1. Every rank of a context-parallel group holds an equal part of the sequence of the same windows
   (:class:`SequenceShard`). Positions, document borders and masks are those of the whole windows.
2. Before the attention every rank gives away heads and gets the rest of the sequence (:func:`to_heads`). The attention
   kernel sees whole windows, and a part of the heads.
3. After the attention the exchange goes back (:func:`to_sequence`).

The attention work of a group is level for any document borders, because every rank computes the same windows with the
same number of heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torchtitan.distributed import ParallelDims


@dataclass(frozen=True)
class SequenceShard:
    """The part of the sequence of every window that a rank computes.

    Attributes:
        index: index of the part, which is the rank in the context-parallel group.
        count: number of parts. 1: no context parallelism.
    """

    index: int = 0
    count: int = 1

    def of(self, x_BL: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor ``[B, L, …]``, contiguous ``[B, L / count, …]``."""
        return x_BL if self.count == 1 else x_BL.chunk(self.count, dim=1)[self.index].contiguous()


def to_heads(x_BLNH: torch.Tensor, group: dist.ProcessGroup, *, heads: int) -> torch.Tensor:
    """Exchange heads for sequence: ``[B, L/n, N, H]`` to ``[B, L, N/n, H]`` for a group of n ranks.

    Key and value heads are fewer than query heads. If n does not divide their number, each is repeated, so that every
    rank gets the key head of each of its query heads. The gradient of a repeated head is the sum.

    Args:
        x_BLNH: queries, keys or values of this rank's part of the sequence.
        group: the context-parallel group.
        heads: query heads. The number is divisible by n and by the heads of ``x_BLNH``.
    """
    n, own = group.size(), x_BLNH.shape[2]
    repeats = math.lcm(own, n) // own
    assert heads % (own * repeats) == 0, f"{heads} query heads, {own} heads, {n} ranks"
    if repeats > 1:
        x_BLNH = x_BLNH.repeat_interleave(repeats, dim=2)
    return _exchange(x_BLNH, group, scatter=2, gather=1)


def to_sequence(x_BLNH: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Exchange sequence for heads: ``[B, L, N/n, H]`` to ``[B, L/n, N, H]`` for a group of n ranks."""
    return _exchange(x_BLNH, group, scatter=1, gather=2)


def _exchange(x: torch.Tensor, group: dist.ProcessGroup, *, scatter: int, gather: int) -> torch.Tensor:
    """Send part ``r`` along the dimension ``scatter`` to rank ``r``. Join the received parts along ``gather``."""
    # A functional collective: selective checkpointing saves its output, and torch.compile traces it.
    parts = torch.stack(x.chunk(group.size(), dim=scatter))
    received = all_to_all_single_autograd(parts, None, None, group)
    return torch.cat(received.unbind(0), dim=gather)


class WithoutContextParallel:
    """The parallel dimensions of a run with ``cp_enabled`` False.

    torchtitan then leaves the attention and the batches as they are. The package divides the sequence itself, because
    torchtitan 0.3.0 has no context parallelism for document attention.
    """

    cp_enabled = False

    def __init__(self, dims: ParallelDims) -> None:
        self._dims = dims

    def __getattr__(self, name: str) -> object:
        return getattr(self._dims, name)
