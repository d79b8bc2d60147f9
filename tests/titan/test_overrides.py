"""The overrides on torchtitan's own configs. test_training.py tests the training with overrides."""

import pytest
from torchtitan.config.override import OverrideConfig, apply_overrides
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.llama3 import config_registry

from exact_titan.errors import InputError
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.attention import DocumentAttention

HERE = "exact_titan.titan.overrides"


@pytest.mark.parametrize("recipe", ["llama3_debugmodel_varlen_attn", "llama3_8b"])
def test_loss_and_dataloaders_of_a_shipped_config_are_replaced(recipe):
    config = getattr(config_registry, recipe)()
    chunks = config.loss.num_chunks
    imports = [
        (f"{HERE}.exact_loss", {"dataset_path": "packed", "alpha": 0.25}),
        (f"{HERE}.packed_dataloader", {"dataset_path": "packed", "seed": 3}),
        (f"{HERE}.packed_validation", {"dataset_path": "packed"}),
    ]
    apply_overrides(OverrideConfig(imports=imports), config)
    assert isinstance(config.loss, ExactLoss.Config)
    assert (config.loss.alpha, config.loss.num_chunks, config.loss.dataset_path) == (0.25, chunks, "packed")
    assert isinstance(config.dataloader, PackedDataLoader.Config)
    # torchtitan's trainer passes all other tensors of the dataloader to the model. The model does not take them.
    assert (config.dataloader.seed, config.dataloader.split, config.dataloader.varlen_metadata) == (3, "train", False)
    validation = config.validator.dataloader
    assert (validation.split, validation.infinite, validation.varlen_metadata) == ("val", False, False)


def test_varlen_attention_is_replaced_in_every_layer():
    config = config_registry.llama3_debugmodel_varlen_attn()
    apply_overrides(OverrideConfig(imports=[f"{HERE}.document_attention"]), config)
    layers = config.model_spec.model.layers
    assert all(isinstance(layer.attention.inner_attention, DocumentAttention.Config) for layer in layers)


def test_the_kernel_is_chosen_and_its_output_saved_by_overrides():
    config = config_registry.llama3_debugmodel_varlen_attn()
    config.activation_checkpoint = SelectiveAC.Config(debug=True)
    imports = [(f"{HERE}.document_attention", {"implementation": "fa2"}), f"{HERE}.save_attention"]
    apply_overrides(OverrideConfig(imports=imports), config)
    layers = config.model_spec.model.layers
    assert {layer.attention.inner_attention.implementation for layer in layers} == {"fa2"}
    assert type(config.activation_checkpoint) is AttentionSavingAC.Config
    assert config.activation_checkpoint.debug


def test_refreshing_weights_in_torchtitans_trainer_is_refused():
    config = config_registry.llama3_debugmodel()
    imports = [(f"{HERE}.exact_loss", {"dataset_path": "packed", "refresh_steps": 10})]
    with pytest.raises(InputError, match="refresh_steps needs exact_titan's own trainer"):
        apply_overrides(OverrideConfig(imports=imports), config)
