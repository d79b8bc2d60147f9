"""The architecture of a decoder as plain numbers, and the architectures of the paper's models."""

import math
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.models.rope import Llama3Scaling, RopeScaling, describe_rope

LARGEST_SIZE = 2**31 - 1
"""Largest width, vocabulary or number of positions."""

MOST_LAYERS = 10_000
MOST_PARAMETERS = 10**14
"""Limits above every published model. A file with larger numbers is damaged, or shall fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A pre-norm decoder with RMSNorm, RoPE, grouped-query attention and SwiGLU.

    The families are Llama, Mistral, Qwen2, Qwen3 and SmolLM3.
    """

    family: str
    """``model_type`` in a config.json: one of the families that ``hf_config`` reads."""

    dim: int
    """Width of the residual stream, D."""

    n_layers: int
    n_heads: int
    """Query heads, N."""

    n_kv_heads: int
    head_dim: int
    """Width of a head, H."""

    ffn_dim: int
    """Inner width of the feed-forward."""

    vocab_size: int
    """Rows of the embedding, V. The tokenizer has at most V ids."""

    max_positions: int
    """Length of the longest document that the model supports, ``max_position_embeddings``."""

    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    """True if the output layer shares the weights of the embedding."""

    qkv_bias: bool = False
    """True if the query, key and value projections have biases (Qwen2)."""

    qk_norm: bool = False
    """True if an RMSNorm follows the query projection and the key projection of each head (Qwen3)."""

    layers_without_rope: tuple[int, ...] = ()
    """Indices of the layers that rotate neither queries nor keys (SmolLM3)."""

    rope_scaling: RopeScaling | None = None

    @property
    def rope(self) -> str:
        """RoPE in words."""
        return describe_rope(self.rope_theta, self.rope_scaling, self.max_positions)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its name in a Hugging Face folder, in the order of the layers.

        A model with tied embeddings has no ``lm_head.weight``.
        """
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.dim,),
            "self_attn.q_proj.weight": (q, self.dim),
            "self_attn.k_proj.weight": (kv, self.dim),
            "self_attn.v_proj.weight": (kv, self.dim),
            "self_attn.o_proj.weight": (self.dim, q),
            "post_attention_layernorm.weight": (self.dim,),
            "mlp.gate_proj.weight": (self.ffn_dim, self.dim),
            "mlp.up_proj.weight": (self.ffn_dim, self.dim),
            "mlp.down_proj.weight": (self.dim, self.ffn_dim),
        }
        if self.qkv_bias:
            layer |= {f"self_attn.{x}_proj.bias": (size,) for x, size in (("q", q), ("k", kv), ("v", kv))}
        if self.qk_norm:
            layer |= {f"self_attn.{x}_norm.weight": (self.head_dim,) for x in ("q", "k")}
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.dim)}
        for i in range(self.n_layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (self.dim,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.dim)
        return shapes

    def num_parameters(self) -> int:
        """Return the number of parameters. A tied embedding counts once, as in the published sizes."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def check_size(self, where: str) -> None:
        """Refuse a model that no machine can hold.

        Raises:
            InputError: starting with ``where``.
        """
        if (parameters := self.num_parameters()) > MOST_PARAMETERS:
            raise InputError(
                f"{where}: the model would have {parameters:,} parameters: correct the sizes; the most are "
                f"{MOST_PARAMETERS:,}"
            )


def _qwen25(
    dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, *, positions: int, tied: bool, vocab_size: int
) -> Architecture:
    return Architecture(
        family="qwen2",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        max_positions=positions,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        tie_embeddings=tied,
        qkv_bias=True,
    )


def _qwen3(dim: int, n_layers: int, n_heads: int, ffn_dim: int, *, tied: bool) -> Architecture:
    return Architecture(
        family="qwen3",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=ffn_dim,
        vocab_size=151_936,
        max_positions=40_960,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        tie_embeddings=tied,
        qk_norm=True,
    )


def _llama3(dim: int, n_layers: int, n_heads: int, ffn_dim: int, *, scaling_factor: float, tied: bool) -> Architecture:
    return Architecture(
        family="llama",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=128_256,
        max_positions=131_072,
        rope_theta=500_000.0,
        rope_scaling=Llama3Scaling(factor=scaling_factor, original_positions=8192),
        norm_eps=1e-5,
        tie_embeddings=tied,
    )


PRESETS: dict[str, Architecture] = {
    "Qwen2.5-0.5B": _qwen25(896, 24, 14, 2, 4864, positions=32_768, tied=True, vocab_size=151_936),
    "Qwen2.5-1.5B": _qwen25(1536, 28, 12, 2, 8960, positions=131_072, tied=True, vocab_size=151_936),
    "Qwen2.5-3B": _qwen25(2048, 36, 16, 2, 11_008, positions=32_768, tied=True, vocab_size=151_936),
    "Qwen2.5-7B": _qwen25(3584, 28, 28, 4, 18_944, positions=131_072, tied=False, vocab_size=152_064),
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    "Llama-3.2-1B": _llama3(2048, 16, 32, 8192, scaling_factor=32.0, tied=True),
    "Llama-3.2-3B": _llama3(3072, 28, 24, 8192, scaling_factor=32.0, tied=True),
    "Llama-3.1-8B": _llama3(4096, 32, 32, 14_336, scaling_factor=8.0, tied=False),
    "SmolLM2-135M": Architecture(
        family="llama",
        dim=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        ffn_dim=1536,
        vocab_size=49_152,
        max_positions=8192,
        rope_theta=100_000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    "SmolLM3-3B": Architecture(
        family="smollm3",
        dim=2048,
        n_layers=36,
        n_heads=16,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=11_008,
        vocab_size=128_256,
        max_positions=65_536,
        rope_theta=5_000_000.0,
        norm_eps=1e-6,
        tie_embeddings=True,
        layers_without_rope=tuple(range(3, 36, 4)),
    ),
}
"""Architectures by name: the paper's models, Qwen3, SmolLM3, and SmolLM2-135M, which a CPU can train.

The numbers are the numbers of the published config.json files. The planner uses the presets, because the presets need
no weights."""

REPOSITORIES = {
    name: f"{organisation}/{name}"
    for organisation, start in (("Qwen", "Qwen"), ("meta-llama", "Llama"), ("HuggingFaceTB", "SmolLM"))
    for name in PRESETS
    if name.startswith(start)
}
"""The repository on the Hugging Face hub that holds the weights of each preset."""
