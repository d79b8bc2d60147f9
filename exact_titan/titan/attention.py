"""Document attention: every token attends to its own document's prefix, on the CPU and on CUDA from the same config."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torchtitan.models.common.attention import VarlenAttention, VarlenMetadata
from torchtitan.tools.logging import logger, warn_once


def varlen_metadata(cu_seqlens: torch.Tensor, max_seqlen: int, host_offsets: tuple[int, ...] | None) -> VarlenMetadata:
    """torchtitan's varlen metadata from what the loader knows, so that nothing is searched for on the device.

    Args:
        cu_seqlens: int32 ``[n+1]``, document borders in the flattened batch, 0 to B*L, on the device of the inputs.
        max_seqlen: length of the longest document in the batch, on the host.
        host_offsets: ``cu_seqlens`` on the host; only the CPU path reads it.
    """
    return VarlenMetadata(
        cu_seq_q=cu_seqlens, cu_seq_k=cu_seqlens, max_q=max_seqlen, max_k=max_seqlen, cu_seq_q_host=host_offsets
    )


class DocumentAttention(VarlenAttention):
    """torchtitan's varlen attention on CUDA; on the CPU, which has no backward for it, causal SDPA per document.

    Takes the place of :class:`VarlenAttention` in any torchtitan config: arguments, shapes and mask are the same.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        pass

    def __init__(self, config: Config) -> None:
        try:
            super().__init__(config)
        except (ImportError, RuntimeError) as error:
            # It ends by asking for FlashAttention 3 (Hopper) or 4 (Blackwell), which come in packages of their own.
            warn_once(
                logger, f"Attention: torch's built-in FlashAttention 2, because the newer one is missing: {error}"
            )

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: VarlenMetadata,
        scale: float | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output ``[B, L, N, H]`` in the dtype of ``q_BLNH``; see :class:`VarlenAttention`."""
        if q_BLNH.device.type != "cpu":
            return super().forward(q_BLNH, k_BLNH, v_BLNH, attention_masks=attention_masks, scale=scale, **kwargs)
        if self.window_size != (-1, 0):
            raise NotImplementedError(f"attention window {self.window_size}: on the CPU only causal (-1, 0) is there")
        offsets = attention_masks.cu_seq_q_host or tuple(attention_masks.cu_seq_q.tolist())
        lengths = [end - start for start, end in pairwise(offsets)]
        # [T, N, H] -> [N, T, H], then one SDPA call a document.
        q_NTH, k_NTH, v_NTH = (x.flatten(0, 1).transpose(0, 1) for x in (q_BLNH, k_BLNH, v_BLNH))
        documents = zip(*(x.split(lengths, dim=1) for x in (q_NTH, k_NTH, v_NTH)), strict=True)
        out = [
            F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=kwargs.get("enable_gqa", False)
            )[0]
            for q, k, v in documents
        ]
        return torch.cat(out, dim=1).transpose(0, 1).unflatten(0, q_BLNH.shape[:2])
