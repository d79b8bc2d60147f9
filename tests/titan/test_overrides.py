"""The overrides on torchtitan's own configs, and torchtitan's own command with overrides.

test_training.py compares the losses of a training with overrides.
"""

import re

import pytest
from torchtitan.config.override import OverrideConfig, apply_overrides
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.llama3 import config_registry

from exact_titan.errors import InputError
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.attention import DocumentAttention
from tests.support import pack_lengths, torchrun

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


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("random", "loss.rule is random: this rule needs exact_titan's own trainer"),
        ("normalized_exact", "loss.rule is normalized_exact: this rule needs exact_titan's own trainer"),
        ("exakt", r"loss.rule is 'exakt': choose one of standard, .*; did you mean exact\?"),
    ],
)
def test_a_rule_that_torchtitans_trainer_cannot_serve_is_refused(rule, message):
    config = config_registry.llama3_debugmodel()
    with pytest.raises(InputError, match=message):
        apply_overrides(
            OverrideConfig(imports=[(f"{HERE}.exact_loss", {"dataset_path": "packed", "rule": rule})]), config
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipeline", "pipeline_parallel_degree is 2: torchtitan hands no positions to the loss in a pipeline"),
        ("context", "context_parallel_degree is 2: torchtitan's own trainer gives the loss a part of each window"),
        ("tensor", None),
    ],
)
def test_parallelism_that_does_not_fit_the_loss_is_refused_by_name(kind, message):
    """torchtitan's trainer calls the two functions one after the other, before it builds the model."""
    config = config_registry.llama3_debugmodel()
    config.training.disable_cuda_graphs = True
    setattr(config.parallelism, f"{kind}_parallel_degree", 2)
    config._validate_cuda_graphs()
    apply_overrides(OverrideConfig(imports=[(f"{HERE}.exact_loss", {"dataset_path": "packed"})]), config)
    if message is None:
        config._validate_cuda_graphs()
        return
    with pytest.raises(InputError, match=message):
        config._validate_cuda_graphs()


RECIPES = """
import exact_titan.titan.overrides  # torchtitan trains on the CPU
from torchtitan.models.llama3.config_registry import llama3_debugmodel_varlen_attn
"""


def stock_training(dataset, folder, *options: str, loss_dataset=None):
    """Run README's command: torchrun and torchtitan's own entry point. Only the overrides bring in this package."""
    (folder / "my_recipes").mkdir()
    (folder / "my_recipes/__init__.py").touch()
    (folder / "my_recipes/config_registry.py").write_text(RECIPES)
    command = ["-m", "torchtitan.train", "--module", "my_recipes", "--config", "llama3_debugmodel_varlen_attn"]
    command += ["--hf_assets_path", str(dataset.folder / "tokenizer"), "--training.seq_len", str(dataset.window)]
    command += [
        "--training.disable-cuda-graphs",
        "--training.mixed_precision_param",
        "float32",
        "--training.steps",
        "3",
    ]
    command += ["--parallelism.spmd_backend", "partial_dtensor", "--metrics.log_freq", "1", *options]
    command += ["--override.imports", f"{HERE}.document_attention"]
    command += [f'{HERE}.exact_loss={{"dataset_path": "{loss_dataset or dataset.folder}", "alpha": 0.15}}']
    command += [f'{HERE}.packed_dataloader={{"dataset_path": "{dataset.folder}"}}']
    command += [f'{HERE}.packed_validation={{"dataset_path": "{dataset.folder}"}}']
    return torchrun(2, *command, cwd=folder)


@pytest.mark.slow
def test_readmes_command_trains_and_validates_with_torchtitans_own_entry_point(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = stock_training(dataset, tmp_path, "--validator.enable", "--validator.freq", "2", "--validator.steps", "-1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    # torchtitan reduces the timeout of the process groups after step 1.
    assert {int(step) for step in re.findall(r"- step: +(\d+)  loss:", log)} == {1, 2, 3}
    assert {int(step) for step in re.findall(r"validate step: +(\d+)  loss:", log)} == {1, 2}
    assert "Training completed" in log


@pytest.mark.slow
def test_a_loss_of_another_window_than_the_runs_is_refused_in_the_first_step(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    other = pack_lengths(tmp_path / "other", [300] * 4, seq_len=128)
    done = stock_training(dataset, tmp_path, loss_dataset=other.folder)
    assert done.returncode != 0
    assert f"loss.dataset_path is {other.folder}, packed in windows of 128 tokens" in done.stderr
    assert "step:  1" not in done.stdout
