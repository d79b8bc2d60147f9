"""FLOPs of a training step, as MFU counts them: forward and backward pass, without recomputation.

torchtitan counts the attention of complete windows without a mask. This module counts causal attention within each
document.
"""

from collections.abc import Iterable

from torch import nn
from torchtitan.models.common.decoder import Decoder


def attention_pairs(lengths: Iterable[int]) -> int:
    """Return the query-key pairs of causal attention within documents of these lengths: ``sum n (n + 1) / 2``."""
    return sum(n * (n + 1) // 2 for n in lengths)


def attention_flops(pairs: int, *, n_layers: int, n_heads: int, head_dim: int) -> int:
    """Return the FLOPs of the scores and of the weighted sum of the values, for a number of query-key pairs.

    In each head a pair costs ``2 * head_dim`` FLOPs for the score and ``2 * head_dim`` FLOPs for the value. The
    backward pass costs twice the forward pass.
    """
    return 3 * 2 * 2 * head_dim * n_heads * n_layers * pairs


def attention_shape(config: Decoder.Config) -> dict[str, int]:
    """Return the keyword arguments of :func:`attention_flops` for a model of this config."""
    attention = config.first_attention
    assert attention is not None
    return {
        "n_layers": sum(layer.attention is not None for layer in config.layers),
        "n_heads": attention.n_heads,
        "head_dim": getattr(attention, "head_dim", None) or config.dim // attention.n_heads,
    }


def matmul_flops_per_token(config: Decoder.Config, model: nn.Module) -> int:
    """Return the FLOPs of a token outside attention, by torchtitan's count: 6 for every parameter of a matrix product.

    The embedding is a table lookup. The embedding counts only if it is also the output layer, and then once.

    Args:
        config: the config of the model.
        model: the model built from ``config``. The model may be on the meta device.
    """
    return config.get_nparams_and_flops(model, 0)[1]  # 0: torchtitan's attention FLOPs are linear in the window length
