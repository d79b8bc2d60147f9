"""What CUDA's kernels allocate, for a trace whose tensors say they are on the CPU.

A build of torch without CUDA cannot run autograd over tensors that only claim to be on CUDA, so a step is traced on the
CPU device. Most operators allocate alike on both. Those that do not are here.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torchtitan.models.common.attention import VarlenAttention
from torchtitan.models.common.decoder import Decoder

Device = Literal["cuda", "cpu"]


def allocation_block(device: Device) -> int:
    """Bytes that an allocation is rounded up to: CUDA's caching allocator gives out blocks of 512."""
    return 512 if device == "cuda" else 1


def norm_kernel(device: Device) -> AbstractContextManager[Any]:
    """On CUDA RMSNorm is one kernel; on the CPU it is a chain of operators, each with an output of its own."""
    return mock.patch.object(F, "rms_norm", _fused_rms_norm) if device == "cuda" else nullcontext()


def use_attention_kernel(config: Decoder.Config, device: Device) -> None:
    """Let the model be traced with the attention that runs on the device: FlashAttention on CUDA."""
    if device == "cuda":
        for layer in config.layers:
            inner = layer.attention.inner_attention
            if isinstance(inner, VarlenAttention.Config):
                layer.attention.inner_attention = _FlashAttention.Config(window_size=inner.window_size)


def workspace(func: Any, args: tuple) -> int:
    """Bytes that FlashAttention 2 takes for itself in the backward pass, from ``mha_varlen_bwd`` in its flash_api.cpp.

    Float32 sums of the query gradients, padded by 128 rows for every document, and where key and value heads are fewer
    than query heads, their gradients for every query head. FlashAttention 3 needs less.
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


class _FlashAttention(VarlenAttention):
    """torchtitan's varlen attention, built without asking which GPU there is."""

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        pass

    def __init__(self, config: Config) -> None:
        super(VarlenAttention, self).__init__()
        self.window_size = config.window_size


def _fused_rms_norm(
    x: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    # Of two dtypes, CUDA makes the chain of operators too.
    if weight is None or weight.dtype != x.dtype:
        return torch.rms_norm(x, normalized_shape, weight, eps)
    return _FusedRMSNorm.apply(x, weight)


class _FusedRMSNorm(torch.autograd.Function):
    """Allocates and saves what ``aten::_fused_rms_norm`` does on CUDA; computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
