"""torchtitan model specs made from torchtitan's own components, with document attention."""

from dataclasses import dataclass
from functools import partial

from torch import nn
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from exact_titan.errors import InputError
from exact_titan.titan.attention import DocumentAttention


@dataclass(kw_only=True, slots=True)
class LlamaArchitecture:
    """Shape of a Llama that is trained from scratch."""

    dim: int = 256
    """Width of the residual stream."""

    n_layers: int = 4
    """Number of transformer blocks."""

    n_heads: int = 8
    """Attention heads; must divide dim."""

    n_kv_heads: int = 4
    """Key and value heads (grouped-query attention); must divide n_heads."""

    ffn_dim: int = 768
    """Inner width of the feed-forward (SwiGLU)."""

    vocab_size: int = 0
    """Rows of the embedding; 0: as many as the dataset's tokenizer has ids."""

    rope_theta: float = 500_000.0
    """Base of the rotary embedding."""

    tie_embeddings: bool = True
    """Use the embedding as the output layer too."""


def check_architecture(model: LlamaArchitecture) -> None:
    """Refuse shapes that do not fit together.

    Raises:
        InputError: naming the option.
    """
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim"):
        if getattr(model, name) < 1:
            raise InputError(f"model.{name} is {getattr(model, name)}: it must be 1 or more")
    if model.dim % model.n_heads or (model.dim // model.n_heads) % 2:
        raise InputError(
            f"model.n_heads is {model.n_heads}: model.dim ({model.dim}) over it must be an even whole number"
        )
    if model.n_heads % model.n_kv_heads:
        raise InputError(f"model.n_kv_heads is {model.n_kv_heads}: it must divide model.n_heads ({model.n_heads})")


def check_vocabulary(model: Decoder.Config, *, tokenizer_vocab: int) -> None:
    """Refuse a model that lacks some of the dataset's ids.

    Raises:
        InputError: naming both sizes.
    """
    if model.vocab_size < tokenizer_vocab:
        raise InputError(
            f"model.vocab_size is {model.vocab_size}, but the dataset's tokenizer has {tokenizer_vocab} ids: "
            f"raise it to {tokenizer_vocab} or more, or set it to 0 to take the tokenizer's"
        )


def _normal(std: float) -> dict:
    return {"weight": partial(nn.init.trunc_normal_, std=std)}


_ONES = {"weight": nn.init.ones_}


def _norm(dim: int) -> RMSNorm.Config:
    return RMSNorm.Config(normalized_shape=dim, param_init=_ONES)


def _block(model: LlamaArchitecture, layer: int, rope: ComplexRoPE.Config) -> Llama3TransformerBlock.Config:
    depth_init = _normal(depth_scaled_std(0.02, layer))
    return Llama3TransformerBlock.Config(
        attention_norm=_norm(model.dim),
        ffn_norm=_norm(model.dim),
        attention=make_gqa_config(
            dim=model.dim,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            wqkv_param_init=_normal(0.02),
            wo_param_init=depth_init,
            inner_attention=DocumentAttention.Config(),
            fuse_qkv=True,
            rope=rope,
        ),
        feed_forward=make_ffn_config(
            dim=model.dim, hidden_dim=model.ffn_dim, w1_param_init=_normal(0.02), w2w3_param_init=depth_init
        ),
    )


def llama_spec(model: LlamaArchitecture, *, seq_len: int, tokenizer_vocab: int) -> ModelSpec:
    """Model spec of a Llama to train from scratch, initialised as torchtitan's Llama 3 but for a tied output layer.

    Args:
        seq_len: longest position, the window length.
        tokenizer_vocab: ids of the dataset's tokenizer, used where ``model.vocab_size`` is 0.

    Raises:
        InputError: as :func:`check_architecture`.
    """
    check_architecture(model)
    vocab_size = model.vocab_size or tokenizer_vocab
    rope = ComplexRoPE.Config(dim=model.dim // model.n_heads, max_seq_len=seq_len, theta=model.rope_theta)
    embedding_init = {"weight": skip_param_init if model.tie_embeddings else partial(nn.init.normal_, std=1.0)}
    return ModelSpec(
        name="llama",
        flavor=f"{model.n_layers}x{model.dim}",
        model=Llama3Model.Config(
            dim=model.dim,
            vocab_size=vocab_size,
            enable_weight_tying=model.tie_embeddings,
            tok_embeddings=Embedding.Config(
                num_embeddings=vocab_size, embedding_dim=model.dim, param_init=embedding_init
            ),
            norm=_norm(model.dim),
            lm_head=Linear.Config(
                in_features=model.dim,
                out_features=vocab_size,
                # A tied output layer of torchtitan's size predicts the input token itself at first, at a loss near 15.
                param_init=_normal(0.02 if model.tie_embeddings else model.dim**-0.5),
            ),
            layers=[_block(model, layer, rope) for layer in range(model.n_layers)],
        ),
        parallelize_fn=parallelize_llama,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=Llama3StateDictAdapter,
    )
