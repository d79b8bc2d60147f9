"""Document attention on the CPU: torch's SDPA, one document at a time, as a single operator of torch.

A single operator hides the loop over the documents from torch.compile, so a compiled graph does not depend on the
number of documents. Selective activation checkpointing saves the output of the operator.

Both passes call the kernels that ``F.scaled_dot_product_attention`` calls on the CPU. Results and gradients are equal
bit for bit.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

_aten = torch.ops.aten


@torch.library.custom_op("exact_titan::document_sdpa", mutates_args=(), device_types="cpu")
def document_sdpa(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the causal attention within each document, and the log-sum-exp of its scores.

    Args:
        q_TNH: queries of the flattened batch, any float dtype.
        k_TNH: keys, with as many heads as the queries or a divisor of their number (grouped-query attention).
        v_TNH: values, with the heads of the keys.
        cu_seqlens: integer ``[n+1]``, document borders, 0 to T.
        scale: factor of the scores. None: ``1 / sqrt(H)``.

    Returns:
        The output ``[T, N, H]`` in the dtype of the queries, and the log-sum-exp ``[T, N]``, for the backward pass.
    """
    out_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    lse_TN = q_TNH.new_empty(q_TNH.shape[:2], dtype=_lse_dtype(q_TNH))
    for tokens in _documents(cu_seqlens):
        q, k, v = (_batch(x_TNH[tokens]) for x_TNH in (q_TNH, k_TNH, v_TNH))
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True, scale=scale)
        out_TNH[tokens] = out[0].transpose(0, 1)
        lse_TN[tokens] = lse[0].transpose(0, 1)
    return out_TNH, lse_TN


@document_sdpa.register_fake
def _(q_TNH: torch.Tensor, k_TNH: Any, v_TNH: Any, cu_seqlens: Any, scale: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(q_TNH, memory_format=torch.contiguous_format),
        q_TNH.new_empty(q_TNH.shape[:2], dtype=_lse_dtype(q_TNH)),
    )


@torch.library.custom_op("exact_titan::document_sdpa_backward", mutates_args=(), device_types="cpu")
def document_sdpa_backward(
    grad_TNH: torch.Tensor,
    q_TNH: torch.Tensor,
    k_TNH: torch.Tensor,
    v_TNH: torch.Tensor,
    out_TNH: torch.Tensor,
    lse_TN: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values for the gradient of the output."""
    grads = _like(q_TNH, k_TNH, v_TNH)
    for tokens in _documents(cu_seqlens):
        grad, q, k, v, out = (_batch(x_TNH[tokens]) for x_TNH in (grad_TNH, q_TNH, k_TNH, v_TNH, out_TNH))
        # The kernel reads the log-sum-exp with the strides that the forward kernel gives it.
        lse = lse_TN[tokens].contiguous().transpose(0, 1)[None]
        document_grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True, scale=scale
        )
        for of_all_TNH, of_document in zip(grads, document_grads, strict=True):
            of_all_TNH[tokens] = of_document[0].transpose(0, 1)
    return grads


@document_sdpa_backward.register_fake
def _(
    grad_TNH: Any, q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _like(q_TNH, k_TNH, v_TNH)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    q_TNH, k_TNH, v_TNH, cu_seqlens, scale = inputs
    ctx.save_for_backward(q_TNH, k_TNH, v_TNH, *output, cu_seqlens)
    ctx.scale = scale


def _backward(ctx: Any, grad_TNH: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    return *document_sdpa_backward(grad_TNH, *ctx.saved_tensors, ctx.scale), None, None


document_sdpa.register_autograd(_backward, setup_context=_save_for_backward)


def _documents(cu_seqlens: torch.Tensor) -> Iterator[slice]:
    return (slice(start, end) for start, end in pairwise(cu_seqlens.tolist()))


def _like(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in tensors)
    return q, k, v


def _batch(x_TNH: torch.Tensor) -> torch.Tensor:
    """Return one document as the batch ``[1, N, T, H]`` of SDPA."""
    return x_TNH.transpose(0, 1)[None]


def _lse_dtype(q_TNH: torch.Tensor) -> torch.dtype:
    return torch.float64 if q_TNH.dtype == torch.float64 else torch.float32
