"""Real Hugging Face checkpoints for tests. Models read the weights with the code of torchtitan's checkpointer."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from exact_titan.models.hf_config import read_architecture
from exact_titan.titan.model.decoder import decoder_spec

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CHECKPOINTS = {
    "llama": (LlamaConfig, {}),
    "llama tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama with scaled RoPE": (LlamaConfig, {"rope_parameters": LLAMA_3_SCALING}),
    "llama with linear RoPE": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama with YaRN": (LlamaConfig, {"rope_parameters": YARN}),
    "llama with wide heads": (LlamaConfig, {"head_dim": 24, "num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, {"rms_norm_eps": 1e-5}),
    "qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2 with YaRN": (
        Qwen2Config,
        {"rope_parameters": {**YARN, "rope_theta": 1e6, "attention_factor": 1.5, "truncate": False}},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 24, "num_key_value_heads": 1}),
    "qwen3 tied": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 16}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "smollm3": (SmolLM3Config, {"no_rope_layer_interval": 2, "pad_token_id": None}),
    "smollm3 with YaRN": (
        SmolLM3Config,
        {"no_rope_layer_interval": 2, "pad_token_id": None, "rope_parameters": YARN},
    ),
}


def transformers_model(name: str, **options) -> PreTrainedModel:
    """Return a tiny random model of CHECKPOINTS in float32.

    Biases and norms are random too. A test can therefore notice a lost bias or norm.
    """
    config_type, given = CHECKPOINTS[name]
    torch.manual_seed(0)
    config = config_type(**{**SIZES, "rope_theta": 10_000.0, **given, **options})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.1)
    return model.eval()


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return torchtitan's model of a Hugging Face folder, with the weights of the folder."""
    spec = decoder_spec(read_architecture(folder))
    model = spec.model.build().to(dtype)
    model.init_states()
    adapter = spec.state_dict_adapter(spec.model, str(folder))
    state = adapter.to_hf(model.state_dict())
    dcp.load(state, storage_reader=adapter.get_hf_storage_reader(str(folder)), no_dist=True)
    model.load_state_dict(adapter.from_hf(state))
    return model


class Evil:
    """A value whose unpickling creates the file ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)
