"""Rotary embedding in the layout of Hugging Face's weights."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE


class HalfRoPE(CosSinRoPE):
    """Rotates the pairs ``(i, i + H/2)`` of a head, with Llama 3.1's scaling.

    torchtitan's :class:`ComplexRoPE` has the scaling, but rotates neighbours ``(2i, 2i + 1)``, so that q and k weights
    must be permuted on their way in and out, whole, on every rank. In this layout a Hugging Face tensor and the
    parameter are the same, and each rank reads just its own rows. Computed in float32.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def _precompute_cache(self) -> torch.Tensor:
        """Cosines and sines of every position, float32 ``[max_seq_len, H]``: H/2 of each."""
        cis = ComplexRoPE._precompute_cache(cast(Any, self))
        return torch.cat([cis.real, cis.imag], dim=-1)

    @staticmethod
    def apply_rotary_emb(
        query: torch.Tensor, key: torch.Tensor, rope_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated query and key, shapes ``[B, L, N, H]`` and dtypes unchanged; cache ``[1 or B, L, 1, H]``."""
        cos, sin = rope_cache.chunk(2, dim=-1)

        def rotate(x_BLNH: torch.Tensor) -> torch.Tensor:
            x, y = x_BLNH.float().chunk(2, dim=-1)
            return torch.cat([x * cos - y * sin, y * cos + x * sin], dim=-1).type_as(x_BLNH)

        return rotate(query), rotate(key)
