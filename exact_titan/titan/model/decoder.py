"""The torchtitan model spec of an architecture: torchtitan's own components with document attention."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import spmd_types as spmd
import torch
from torch import nn
from torchtitan.distributed import ParallelDims
from torchtitan.models.common import Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import GQAttention, QKVLinear
from torchtitan.models.common.config_utils import make_ffn_config
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.decoder_sharding import dense_activation_placement, dense_param_placement
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.sharding import ShardingConfig

from exact_titan.errors import InputError
from exact_titan.models.architecture import LARGEST_SIZE, MOST_LAYERS, Architecture
from exact_titan.titan.model.attention import DocumentAttention
from exact_titan.titan.model.context_parallel import WithoutContextParallel
from exact_titan.titan.model.rope import HalfRoPE, NoRoPE, share_tables
from exact_titan.titan.model.state_dict import HuggingFaceAdapter


class DecoderModel(Llama3Model):
    """torchtitan's Llama with the :class:`Architecture` in its config."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        architecture: Architecture

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Do the same as torchtitan's Llama, which refuses varlen attention with context parallelism.

            Llama has no norms of queries and keys. Their sharding under tensor parallelism is that of torchtitan's
            Qwen3: every rank has the whole weight and normalizes its own heads.
            """
            seen = copy.copy(config)
            seen.parallelism = replace(config.parallelism, context_parallel_degree=1)
            Llama3Model.Config.update_from_config(self, config=seen, **kwargs)
            heads = dense_activation_placement(tp=spmd.S(2))
            for layer in self.layers:
                if layer.attention.qk_norm is not None:
                    layer.attention.qk_norm.sharding_config = ShardingConfig(
                        state_shardings={"weight": dense_param_placement(tp=spmd.R)},
                        in_src_shardings={"input": heads},
                        in_dst_shardings={"input": heads},
                        out_src_shardings=heads,
                        out_dst_shardings=heads,
                    )

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Initialise weights and buffers as torchtitan does. All layers share one table of RoPE."""
        super().init_states(buffer_device=buffer_device)
        share_tables(self)

    def parallelize(self, parallel_dims: ParallelDims) -> None:
        """Divide the weights over the tensor-parallel ranks as torchtitan does, and keep tied embeddings one parameter.

        torchtitan makes two parameters of tied embeddings here. FSDP would then gather the weight twice. If FSDP pads
        the shards of the vocabulary, one of the two copies would also miss all updates.
        """
        super().parallelize(parallel_dims)
        if self.enable_weight_tying:
            self.tok_embeddings.weight = self.lm_head.weight


def parallelize(model: DecoderModel, *, parallel_dims: ParallelDims, **options: Any) -> nn.Module:
    """Apply torchtitan's parallelisms, activation checkpointing and compilation to the model.

    Document attention has its own context parallelism (:mod:`exact_titan.titan.model.context_parallel`).
    """
    if parallel_dims.cp_enabled:
        for block in model.layers.values():
            block.attention.inner_attention.context_group = parallel_dims.get_mesh("cp").get_group()
    return parallelize_llama(model, parallel_dims=WithoutContextParallel(parallel_dims), **options)


@dataclass(kw_only=True, slots=True)
class LlamaSizes:
    """Sizes of a Llama for training from scratch."""

    dim: int = 256
    """Width of the residual stream."""

    n_layers: int = 4
    """Number of transformer blocks."""

    n_heads: int = 8
    """Attention heads. n_heads must divide dim."""

    n_kv_heads: int = 4
    """Key and value heads (grouped-query attention). n_kv_heads must divide n_heads."""

    ffn_dim: int = 768
    """Inner width of the feed-forward (SwiGLU)."""

    vocab_size: int = 0
    """Rows of the embedding. 0: the number of ids of the dataset's tokenizer."""

    max_positions: int = 0
    """Positions of the model, in tokens: the longest window of this run and of later stages. 0: training.seq_len."""

    rope_theta: float = 500_000.0
    """Base of the rotary embedding."""

    tie_embeddings: bool = True
    """Use the embedding as the output layer."""

    def architecture(self, *, seq_len: int, tokenizer_vocab: int) -> Architecture:
        """Return the architecture with these sizes.

        Args:
            seq_len: window length, the number of positions for ``max_positions`` 0.
            tokenizer_vocab: number of ids of the dataset's tokenizer, for a ``vocab_size`` of 0.

        Raises:
            InputError: naming the option, if the sizes do not fit together.
        """
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"architecture.{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("dim", "n_layers", "ffn_dim", "vocab_size", "max_positions"):
            if getattr(self, name) > (MOST_LAYERS if name == "n_layers" else LARGEST_SIZE):
                raise InputError(f"architecture.{name} is {getattr(self, name)}: no model is that large")
        for name in ("vocab_size", "max_positions"):
            if getattr(self, name) < 0:
                raise InputError(f"architecture.{name} is {getattr(self, name)}: it must be 0 or more")
        if not 1 < self.rope_theta < math.inf:
            raise InputError(
                f"architecture.rope_theta is {self.rope_theta}: it must be more than 0, finite, and above 1"
            )
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise InputError(
                f"architecture.n_heads is {self.n_heads}: architecture.dim ({self.dim}) divided by it must be "
                f"an even whole number"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"architecture.n_kv_heads is {self.n_kv_heads}: it must divide architecture.n_heads ({self.n_heads})"
            )
        made = Architecture(
            family="llama",
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.dim // self.n_heads,
            ffn_dim=self.ffn_dim,
            vocab_size=self.vocab_size or tokenizer_vocab,
            max_positions=self.max_positions or seq_len,
            rope_theta=self.rope_theta,
            norm_eps=1e-5,
            tie_embeddings=self.tie_embeddings,
        )
        made.check_size("architecture")
        return made


def check_vocabulary(model: Decoder.Config, *, tokenizer_vocab: int) -> None:
    """Refuse a model with fewer ids than the dataset's tokenizer.

    Raises:
        InputError: naming both sizes.
    """
    if model.vocab_size < tokenizer_vocab:
        raise InputError(
            f"the model's vocabulary has {model.vocab_size} ids, but the dataset's tokenizer {tokenizer_vocab}: pack "
            f"with the model's own tokenizer (from scratch: set architecture.vocab_size to 0, the tokenizer's size)"
        )


def decoder_spec(architecture: Architecture) -> ModelSpec:
    """Return the model spec of an architecture. The initialisation equals torchtitan's Llama 3.

    Only a tied output layer has a smaller initialisation.
    """
    rope = HalfRoPE.Config(
        dim=architecture.head_dim,
        max_seq_len=architecture.max_positions,
        theta=architecture.rope_theta,
        model_scaling=architecture.rope_scaling,
    )
    dim, tied = architecture.dim, architecture.tie_embeddings
    embedding_init = {"weight": skip_param_init if tied else partial(nn.init.normal_, std=1.0)}
    return ModelSpec(
        name=architecture.family,
        flavor=f"{architecture.n_layers}x{dim}",
        model=DecoderModel.Config(
            architecture=architecture,
            dim=dim,
            vocab_size=architecture.vocab_size,
            enable_weight_tying=tied,
            tok_embeddings=Embedding.Config(
                num_embeddings=architecture.vocab_size, embedding_dim=dim, param_init=embedding_init
            ),
            norm=_norm(architecture, dim),
            lm_head=Linear.Config(
                in_features=dim,
                out_features=architecture.vocab_size,
                # With torchtitan's initialisation a tied output layer predicts the input token at first (loss near 15).
                param_init=_normal(0.02 if tied else dim**-0.5),
            ),
            layers=[_block(architecture, layer, rope) for layer in range(architecture.n_layers)],
        ),
        parallelize_fn=parallelize,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=HuggingFaceAdapter,
    )


def _normal(std: float) -> dict:
    return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}


def _norm(architecture: Architecture, size: int) -> RMSNorm.Config:
    return RMSNorm.Config(normalized_shape=size, eps=architecture.norm_eps, param_init={"weight": nn.init.ones_})


def _block(architecture: Architecture, layer: int, rope: HalfRoPE.Config) -> Llama3TransformerBlock.Config:
    depth_init = _normal(depth_scaled_std(0.02, layer))
    if layer in architecture.layers_without_rope:
        rope = NoRoPE.Config(dim=rope.dim, max_seq_len=rope.max_seq_len, theta=rope.theta)
    return Llama3TransformerBlock.Config(
        attention_norm=_norm(architecture, architecture.dim),
        ffn_norm=_norm(architecture, architecture.dim),
        attention=_attention(architecture, rope, depth_init),
        feed_forward=make_ffn_config(
            dim=architecture.dim,
            hidden_dim=architecture.ffn_dim,
            w1_param_init=_normal(0.02),
            w2w3_param_init=depth_init,
        ),
    )


def _attention(architecture: Architecture, rope: HalfRoPE.Config, output_init: dict) -> GQAttention.Config:
    def projection(heads: int) -> Linear.Config:
        return Linear.Config(
            in_features=architecture.dim,
            out_features=heads * architecture.head_dim,
            bias=architecture.qkv_bias,
            param_init=_normal(0.02),
        )

    return GQAttention.Config(
        dim=architecture.dim,
        n_heads=architecture.n_heads,
        n_kv_heads=architecture.n_kv_heads,
        head_dim=architecture.head_dim,
        # The checkpoint hooks of torchtitan's fused projection gather the whole weight on every rank and keep it.
        qkv_linear=QKVLinear.Config(
            head_dim=architecture.head_dim,
            wq=projection(architecture.n_heads),
            wkv=projection(architecture.n_kv_heads),
        ),
        wo=Linear.Config(
            in_features=architecture.n_heads * architecture.head_dim,
            out_features=architecture.dim,
            param_init=output_init,
        ),
        qk_norm=_norm(architecture, architecture.head_dim) if architecture.qk_norm else None,
        inner_attention=DocumentAttention.Config(),
        rope=rope,
    )
