"""Names of a model's state dict, as torchtitan's checkpointer turns them into Hugging Face's and back."""

from typing import Any

from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from exact_titan.models.hf_weights import hf_name, native_name


class HuggingFaceAdapter(StateDictAdapter):
    """Renames, and nothing else: tensors keep their storage and sharding, so that weights are read into the shards."""

    model_config: Decoder.Config

    def __init__(self, model_config: Decoder.Config, hf_assets_path: str | None) -> None:
        # It would only look there for the shards' names, to save under them.
        super().__init__(model_config, None)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Hugging Face's names; without the output layer where it is the embedding."""
        tied = {"lm_head.weight"} if self.model_config.enable_weight_tying else set()
        return {hf_name(name): value for name, value in state_dict.items() if name not in tied}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """torchtitan's names; the output layer is the embedding where they are tied."""
        state_dict = {native_name(name): value for name, value in hf_state_dict.items()}
        if self.model_config.enable_weight_tying:
            state_dict["lm_head.weight"] = state_dict["tok_embeddings.weight"]
        return state_dict
