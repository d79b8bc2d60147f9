"""Floating point operations of a training step, forward and backward, as MFU counts them: recomputation is not counted.

torchtitan counts the attention of full windows without a mask. Here it is that of the documents, each causal.
"""

from collections.abc import Iterable

from torch import nn
from torchtitan.models.common.decoder import Decoder


def attention_pairs(lengths: Iterable[int]) -> int:
    """Query-key pairs of causal attention within documents of these lengths: ``sum n (n + 1) / 2``."""
    return sum(n * (n + 1) // 2 for n in lengths)


def attention_flops(pairs: int, *, n_layers: int, n_heads: int, head_dim: int) -> int:
    """FLOPs of the scores and of the weighted sum of the values over so many query-key pairs.

    A pair costs each head ``2 * head_dim`` for its score and as much for its value; the backward pass costs twice the
    forward pass.
    """
    return 3 * 2 * 2 * head_dim * n_heads * n_layers * pairs


def attention_shape(config: Decoder.Config) -> dict[str, int]:
    """The keyword arguments of :func:`attention_flops` for a model of this config."""
    attention = config.first_attention
    assert attention is not None
    return {
        "n_layers": sum(layer.attention is not None for layer in config.layers),
        "n_heads": attention.n_heads,
        "head_dim": getattr(attention, "head_dim", None) or config.dim // attention.n_heads,
    }


def matmul_flops_per_token(config: Decoder.Config, model: nn.Module) -> int:
    """FLOPs of a token outside attention: 6 for every parameter that is multiplied, by torchtitan's count.

    The embedding is a table, so it counts only where it is the output layer too, and then once.

    Args:
        model: built from ``config``; on the meta device will do.
    """
    return config.get_nparams_and_flops(model, 0)[1]  # torchtitan's attention is linear in the window length
