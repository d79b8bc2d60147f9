"""RoPE as plain numbers: the kinds of scaling, and RoPE in words.

A scaling lowers the frequencies of RoPE, so that a model continues on longer windows. The kinds and their keys are
those of transformers (``rope_type`` in a config.json). :mod:`exact_titan.titan.model.rope` computes the frequencies.
"""

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency is divided by ``factor``."""

    kind: ClassVar = "linear"

    factor: float

    def __str__(self) -> str:
        return f"linear, factor {self.factor:g}"


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): low frequencies are divided by ``factor``, high frequencies are kept."""

    kind: ClassVar = "yarn"

    factor: float
    original_positions: int
    """Positions before the scaling, ``original_max_position_embeddings``."""

    beta_fast: float = 32.0
    """Frequencies with more turns than this over the original positions are kept."""

    beta_slow: float = 1.0
    """Frequencies with fewer turns than this over the original positions are divided by ``factor``."""

    attention_factor: float | None = None
    """Factor of the cosines and sines. None: the paper's value (:attr:`cos_sin_factor`)."""

    truncate: bool = True
    """Whether the limits between the frequencies are rounded outward to whole dimensions."""

    @property
    def cos_sin_factor(self) -> float:
        """The factor of the cosines and sines in force."""
        return yarn_attention_factor(self.factor) if self.attention_factor is None else self.attention_factor

    def __str__(self) -> str:
        own = [
            *([f"beta_fast {self.beta_fast:g}"] if self.beta_fast != 32 else []),
            *([f"beta_slow {self.beta_slow:g}"] if self.beta_slow != 1 else []),
            *([] if self.truncate else ["not truncated"]),
            f"attention factor {self.cos_sin_factor:.4g}",
        ]
        return f"yarn, factor {self.factor:g} from {self.original_positions:,} positions, {', '.join(own)}"


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """The scaling of Llama 3.1 and later: long wavelengths are stretched by ``factor``, short wavelengths are kept."""

    kind: ClassVar = "llama3"

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int
    """Positions before the scaling, ``original_max_position_embeddings``."""

    def __str__(self) -> str:
        own = [
            *([f"low_freq_factor {self.low_freq_factor:g}"] if self.low_freq_factor != 1 else []),
            *([f"high_freq_factor {self.high_freq_factor:g}"] if self.high_freq_factor != 4 else []),
        ]
        return ", ".join([f"llama3, factor {self.factor:g} from {self.original_positions:,} positions", *own])


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's factor of the cosines and sines: ``0.1 mscale ln(factor) + 1`` (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def describe_rope(theta: float, scaling: RopeScaling | None, positions: int) -> str:
    """Return RoPE in words, for logs and messages."""
    return f"theta {theta:,.10g}, {scaling or 'no scaling'}, {positions:,} positions"
