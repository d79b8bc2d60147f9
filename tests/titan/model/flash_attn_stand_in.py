"""A replacement for the GPU package flash-attn: dense attention with the names and signatures of version 2.8.3.

Tests with the replacement check the calls, the masks, the dtypes and the number of operator runs. They do not check the
kernels. The names and signatures are from flash_attn/flash_attn_interface.py at the tag v2.8.3.
"""

import functools
import types
from importlib.machinery import ModuleSpec
from itertools import pairwise

import torch


def dense(q_TNH, k_TNH, v_TNH, cu_seqlens, scale):
    """Return the causal attention within each document, with an explicit mask, in float32."""
    group = q_TNH.shape[1] // k_TNH.shape[1]
    k_TNH, v_TNH = (x.repeat_interleave(group, dim=1).float() for x in (k_TNH, v_TNH))
    out = []
    for start, end in pairwise(cu_seqlens.tolist()):
        scores = torch.einsum("lnh,mnh->nlm", q_TNH[start:end].float(), k_TNH[start:end]) * scale
        later = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        out.append(torch.einsum("nlm,mnh->lnh", weights, v_TNH[start:end]))
    return torch.cat(out).to(q_TNH.dtype)


def dense_gradients(dout_TNH, q_TNH, k_TNH, v_TNH, cu_seqlens, scale):
    """Return the gradients of queries, keys and values of :func:`dense`, in float32."""
    heads = k_TNH.shape[1]
    group = q_TNH.shape[1] // heads
    q_TNH, dout_TNH = q_TNH.float(), dout_TNH.float()
    k_TNH, v_TNH = (x.repeat_interleave(group, dim=1).float() for x in (k_TNH, v_TNH))
    gradients = [torch.zeros_like(x) for x in (q_TNH, k_TNH, v_TNH)]
    for start, end in pairwise(cu_seqlens.tolist()):
        q, k, v, dout = (x[start:end] for x in (q_TNH, k_TNH, v_TNH, dout_TNH))
        later = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        scores = torch.einsum("lnh,mnh->nlm", q, k) * scale
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        of_weights = torch.einsum("lnh,mnh->nlm", dout, v)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        gradients[0][start:end] = torch.einsum("nlm,mnh->lnh", of_scores, k)
        gradients[1][start:end] = torch.einsum("nlm,lnh->mnh", of_scores, q)
        gradients[2][start:end] = torch.einsum("nlm,lnh->mnh", weights, dout)
    return gradients[0], *(x.unflatten(1, (heads, group)).sum(2) for x in gradients[1:])


@functools.cache
def module() -> types.ModuleType:
    """Return the module for ``sys.modules["flash_attn"]``. Its operator stays registered until the process ends."""

    @torch.library.custom_op("flash_attn::_flash_attn_varlen_forward", mutates_args=(), device_types="cpu")
    def forward(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        return_softmax: bool = False,
        block_table: torch.Tensor | None = None,
        leftpad_k: torch.Tensor | None = None,
        seqused_k: torch.Tensor | None = None,
        zero_tensors: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        assert causal
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        lse, mask, rng_state = torch.zeros(q.shape[1], q.shape[0]), torch.empty(0), torch.zeros(2, dtype=torch.int64)
        return dense(q, k, v, cu_seqlens_q, softmax_scale), lse, mask, rng_state

    @forward.register_fake
    def _(q, k, v, *args, **options):
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        return torch.empty_like(q), lse, lse.new_empty(0), lse.new_empty(2, dtype=torch.int64)

    @torch.library.custom_op("flash_attn::_flash_attn_varlen_backward", mutates_args=("dq", "dk", "dv"))
    def backward(
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dq: torch.Tensor,
        dk: torch.Tensor,
        dv: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
    ) -> None:
        assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        for gradient, value in zip(
            (dq, dk, dv), dense_gradients(dout, q, k, v, cu_seqlens_q, softmax_scale), strict=True
        ):
            gradient.copy_(value)

    class FlashAttnVarlenFunc(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal):
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            out, lse, _, rng_state = torch.ops.flash_attn._flash_attn_varlen_forward(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, scale, causal=causal
            )
            ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, rng_state)
            ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale = max_seqlen_q, max_seqlen_k, scale
            return out

        @staticmethod
        def backward(ctx, dout):
            q, k, v, _, _, cu_seqlens_q, cu_seqlens_k, _ = ctx.saved_tensors
            gradients = [torch.empty_like(x) for x in (q, k, v)]
            torch.ops.flash_attn._flash_attn_varlen_backward(
                dout, q, k, v, *gradients, cu_seqlens_q, cu_seqlens_k, ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.scale
            )
            return *gradients, *[None] * 6

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        package.deterministic = deterministic
        assert window_size == (-1, 0)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return FlashAttnVarlenFunc.apply(q, k, v, *lengths, softmax_scale, causal)

    package = types.ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.__version__ = "2.8.3"
    package.flash_attn_varlen_func = flash_attn_varlen_func
    return package
