"""Rotary position embedding (RoPE) in the layout of Hugging Face's weights."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torchtitan.models.common.rope import CosSinRoPE

from exact_titan.models.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


def frequencies(theta: float, dim: int, scaling: RopeScaling | None) -> torch.Tensor:
    """Return the frequencies of RoPE in radians a position, float32 ``[dim / 2]``, on the CPU.

    The operations and their order are those of transformers (``modeling_rope_utils.py``) and vLLM. At position 131,072
    one rounding of a frequency turns the fastest pair by 0.008 radians, and the YaRN of torchtitan rounds differently.

    Args:
        theta: base of the frequencies.
        dim: width of a head.
        scaling: None: the frequencies of the base alone.
    """
    powers = theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    match scaling:
        case None:
            return 1.0 / powers
        case LinearScaling():
            return 1.0 / powers / scaling.factor
        case Llama3Scaling():
            return _llama3(1.0 / powers, scaling)
        case YarnScaling():
            return _yarn(powers, theta, scaling)


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Return the frequencies of Llama 3.1: long waves divided by the factor, short waves kept, a ramp between them."""
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_positions
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    ramp = (1 - smooth) * plain / scaling.factor + smooth * plain
    long = torch.where(wavelength > original / low, plain / scaling.factor, ramp)
    return torch.where(wavelength < original / high, plain, long)


def _yarn(powers: torch.Tensor, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """Return the frequencies of YaRN: low frequencies divided by the factor, high ones kept, a ramp between them."""
    half = len(powers)
    # The dimension whose wave makes so many turns over the original positions.
    low, high = (
        2 * half * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(half, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


class HalfRoPE(CosSinRoPE):
    """Rotates the pairs ``(i, i + H/2)`` of a head in float32, with every scaling of :mod:`exact_titan.models.rope`.

    torchtitan's ``ComplexRoPE`` rotates the pairs ``(2i, 2i + 1)``. With those pairs every rank must permute the
    complete q and k weights at every load and save. In the layout of this class a Hugging Face tensor and the parameter
    are equal, and each rank reads only its own rows. torchtitan's options of the scaling are not used: torchtitan has
    no linear scaling, and leaves YaRN's attention factor to the model.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        model_scaling: RopeScaling | None = None
        """The scaling of the model."""

    config: Config

    def _precompute_cache(self) -> torch.Tensor:
        """Return H/2 cosines and H/2 sines for every position, float32 ``[max_seq_len, H]``.

        YaRN's attention factor scales both, as in transformers.
        """
        scaling = self.config.model_scaling
        positions = torch.arange(self.config.max_seq_len, dtype=torch.float32)
        frequency = frequencies(self.config.theta, self.config.dim, scaling).to(positions.device)
        angles = torch.outer(positions, frequency)
        cache = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return cache * scaling.cos_sin_factor if isinstance(scaling, YarnScaling) else cache

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


def share_tables(model: nn.Module) -> None:
    """Let all layers with the same RoPE read one table. torchtitan gives every layer a table of its own.

    Without the call, 32 layers of Llama 3.1 hold 2 GiB of equal tables for windows of 131,072 tokens. Call the function
    after every change of the buffers: ``to_empty`` and the initialisation make new tables.
    """
    tables: list[HalfRoPE] = []
    for module in model.modules():
        if isinstance(module, HalfRoPE) and not isinstance(module, NoRoPE):
            same = next((one for one in tables if one.config == module.config), None)
            if same is None:
                tables.append(module)
            else:
                module.cache = same.cache
