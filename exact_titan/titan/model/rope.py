"""Rotary position embedding (RoPE) in the layout of Hugging Face's weights."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE


class HalfRoPE(CosSinRoPE):
    """Rotates the pairs ``(i, i + H/2)`` of a head in float32, with Llama 3.1's scaling.

    torchtitan's :class:`ComplexRoPE` has the scaling, but rotates the pairs ``(2i, 2i + 1)``. With those pairs every
    rank must permute the complete q and k weights at every load and save. In the layout of this class a Hugging Face
    tensor and the parameter are equal, and each rank reads only its own rows.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def _precompute_cache(self) -> torch.Tensor:
        """Return H/2 cosines and H/2 sines for every position, float32 ``[max_seq_len, H]``."""
        cis = ComplexRoPE._precompute_cache(cast(Any, self))
        return torch.cat([cis.real, cis.imag], dim=-1)

    @staticmethod
    def apply_rotary_emb(
        query: torch.Tensor, key: torch.Tensor, rope_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotated query and key with unchanged dtypes.

        Shapes: query and key ``[B, L, N, H]``, cache ``[1 or B, L, 1, H]``.
        """
        cos, sin = rope_cache.chunk(2, dim=-1)

        def rotate(x_BLNH: torch.Tensor) -> torch.Tensor:
            x, y = x_BLNH.float().chunk(2, dim=-1)
            return torch.cat([x * cos - y * sin, y * cos + x * sin], dim=-1).type_as(x_BLNH)

        return rotate(query), rotate(key)


class NoRoPE(HalfRoPE):
    """Rotates nothing, in a layer without positions (SmolLM3)."""

    @dataclass(kw_only=True, slots=True)
    class Config(HalfRoPE.Config):
        pass

    def _precompute_cache(self) -> torch.Tensor:
        return torch.empty(0)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return query and key as they are."""
        return query, key
