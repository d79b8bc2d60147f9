"""The conversion of state dict names between torchtitan and Hugging Face, for torchtitan's checkpointer."""

from typing import Any

from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from exact_titan.models.hf_weights import hf_name, native_name


class HuggingFaceAdapter(StateDictAdapter):
    """Renames tensors. Storage and sharding stay unchanged, so each rank reads weights directly into its shards."""

    model_config: Decoder.Config

    def __init__(self, model_config: Decoder.Config, hf_assets_path: str | None) -> None:
        # None: the base class uses the folder only for the file names of the shards that a save writes.
        super().__init__(model_config, None)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict with Hugging Face's names. A tied output layer is omitted."""
        tied = {"lm_head.weight"} if self.model_config.enable_weight_tying else set()
        return {hf_name(name): value for name, value in state_dict.items() if name not in tied}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict with torchtitan's names. A tied output layer is the tensor of the embedding."""
        state_dict = {native_name(name): value for name, value in hf_state_dict.items()}
        if self.model_config.enable_weight_tying:
            state_dict["lm_head.weight"] = state_dict["tok_embeddings.weight"]
        return state_dict
