"""The allocations of CUDA's kernels, for a trace on the CPU device.

A build of torch without CUDA cannot run autograd over fake CUDA tensors. A step is therefore traced on the CPU device.
Most operators allocate the same sizes on both devices. This module handles all other operators.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torchtitan.models.common.attention import VarlenAttention
from torchtitan.models.common.decoder import Decoder

from exact_titan.titan.model.attention import DocumentAttention

Device = Literal["cuda", "cpu"]


def allocation_block(device: Device) -> int:
    """Return the block size in bytes: 512 for CUDA's caching allocator. Each allocation is rounded up to blocks."""
    return 512 if device == "cuda" else 1


def norm_kernel(device: Device) -> AbstractContextManager[Any]:
    """Trace RMSNorm as one kernel for CUDA. On the CPU, RMSNorm is several operators, each with its own output."""
    return mock.patch.object(F, "rms_norm", _fused_rms_norm) if device == "cuda" else nullcontext()


def use_attention_kernel(config: Decoder.Config, device: Device) -> None:
    """Set the attention that runs on the device: FlashAttention on CUDA."""
    if device == "cuda":
        for layer in config.layers:
            inner = layer.attention.inner_attention
            if isinstance(inner, VarlenAttention.Config):
                layer.attention.inner_attention = _FlashAttention.Config(
                    window_size=inner.window_size, sharding_config=inner.sharding_config
                )


def workspace(func: Any, args: tuple) -> int:
    """Return the bytes of FlashAttention 2's workspace in the backward pass.

    Source: ``mha_varlen_bwd`` in flash_api.cpp of FlashAttention 2. The workspace holds the float32 sums of the query
    gradients, padded by 128 rows for every document. If the model has fewer key and value heads than query heads, the
    workspace also holds the gradients of key and value for every query head. FlashAttention 3 needs less.
    """
    if func is not torch.ops.torch_attn._varlen_attn_backward.default:
        return 0
    query, key, cu_seqlens = args[1], args[2], args[6]
    tokens, heads, head_dim = query.shape
    padded = tokens + 128 * (cu_seqlens.shape[0] - 1)
    size = 4 * padded * heads * (-(-head_dim // 32) * 32 + 1)
    if key.shape[1] != heads:
        size += 2 * query.element_size() * key.shape[0] * heads * head_dim
    return size


class _FlashAttention(DocumentAttention):
    """Document attention with torchtitan's varlen kernel on any device. The constructor does not check the GPU."""

    @dataclass(kw_only=True, slots=True)
    class Config(DocumentAttention.Config):
        pass

    def __init__(self, config: Config) -> None:
        super(VarlenAttention, self).__init__()  # type: ignore[call-arg]
        self.window_size = config.window_size

    def _attend(self, q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, v_BLNH: torch.Tensor, **options: Any) -> torch.Tensor:
        return self._varlen(q_BLNH, k_BLNH, v_BLNH, **options)


def _fused_rms_norm(
    x: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    # If input and weight have different dtypes, CUDA also runs several operators.
    if weight is None or weight.dtype != x.dtype:
        return torch.rms_norm(x, normalized_shape, weight, eps)
    return _FusedRMSNorm.apply(x, weight)


class _FusedRMSNorm(torch.autograd.Function):
    """Allocates and saves the same tensors as ``aten::_fused_rms_norm`` on CUDA. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
