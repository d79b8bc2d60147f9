"""The model and the first weights of a run: one line names each error, before the run starts."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.models.architecture import PRESETS
from exact_titan.titan.preflight import complete
from exact_titan.titan.start import resolve_architecture
from tests.checkpoints import transformers_model


def config_of(dataset, *options: str):
    argv = ["--config", "from_scratch", "--dataloader.dataset_path", str(dataset.folder)]
    return load_config([*argv, "--training.seq_len", str(dataset.window), *options])


@pytest.fixture
def model(tmp_path) -> Path:
    transformers_model("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def refusal(dataset, *options: str) -> str:
    with pytest.raises(InputError) as caught:
        complete(config_of(dataset, *options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_tells_the_checkpointer_where_the_weights_are(dataset, model):
    config = complete(config_of(dataset, "--model", str(model)))
    assert config.checkpoint.initial_load_path == str(model)
    assert config.checkpoint.initial_load_in_hf
    assert config.model_spec.model.dim == 64
    # The trainer may complete the config again. A complete config does not change.
    again = complete(config)
    assert dataclasses.asdict(again.checkpoint) == dataclasses.asdict(config.checkpoint)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_an_architecture_without_a_folder(name):
    assert resolve_architecture(load_config(["--config", "stage_4k", "--model", name])) == PRESETS[name]


def test_a_preset_without_its_weights_says_how_to_get_them(dataset):
    line = refusal(dataset, "--model", "Qwen2.5-0.5B")
    assert line.endswith("hf download Qwen/Qwen2.5-0.5B --local-dir Qwen2.5-0.5B")
    assert "hf download meta-llama/Llama-3.1-8B" in refusal(dataset, "--model", "Llama-3.1-8B")


def test_a_folder_with_the_name_of_a_preset_is_used(dataset, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    model.rename("Qwen2.5-0.5B")
    assert complete(config_of(dataset, "--model", "Qwen2.5-0.5B")).model_spec.model.dim == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "model is 'nowhere': there is no such folder, and the known models are Qwen2.5-0.5B"),
        (["--model", "{model}", "--architecture.dim", "64"], "and architecture is set too: give one of them"),
        (
            ["--model", "{model}", "--checkpoint.no-enable"],
            "checkpoint.enable is off, but the checkpointer reads the weights",
        ),
        (["--model", "{model}", "--checkpoint.initial-load-path", "/other"], "names weights too: give one of them"),
        (["--start_from", "nowhere"], "nowhere: no such folder"),
        (["--start_from", "{empty}"], "checkpoint has no complete checkpoint: the run has not saved one yet"),
        (["--start_from", "outputs", "--dump_folder", "outputs"], "start_from is outputs, this run's own dump_folder"),
        (["--export", "{model}"], "exists already: choose another folder"),
        (["--export", "new", "--checkpoint.no-enable"], "export is set and reads the last checkpoint"),
        (["--export", "new", "--checkpoint.load_only"], "export is set and reads the last checkpoint"),
    ],
)
def test_conflicting_options_are_named(dataset, model, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    filled = [option.format(model=model, empty=tmp_path / "empty") for option in options]
    assert message in refusal(dataset, *filled)


def test_a_window_longer_than_the_models_positions_is_refused(dataset, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 63}))
    line = refusal(dataset, "--model", str(model))
    assert line.startswith("training.seq_len is 64, but the model has 63 positions (max_position_embeddings)")


def test_weights_are_checked_before_anything_is_started(dataset, model):
    (model / "model.safetensors").unlink()
    assert "has no .safetensors weights" in refusal(dataset, "--model", str(model))


def test_a_vocabulary_that_is_too_small_is_refused(dataset, tmp_path):
    transformers_model("llama", vocab_size=200).save_pretrained(tmp_path / "small")
    line = refusal(dataset, "--model", str(tmp_path / "small"))
    assert line.startswith("the model's vocabulary has 200 ids, but the dataset's tokenizer 256: pack with the model's")


def test_a_dataset_of_another_tokenizer_is_refused_with_the_first_different_token(dataset, model):
    file = model / "tokenizer.json"
    shutil.copyfile(dataset.folder / "tokenizer/tokenizer.json", file)
    complete(config_of(dataset, "--model", str(model)))
    # The same tokens in a file with another layout.
    tokenizer = json.loads(file.read_text())
    file.write_text(json.dumps(tokenizer, indent=3))
    complete(config_of(dataset, "--model", str(model)))

    words = tokenizer["model"]["vocab"]
    words["17"], words["18"] = words["18"], words["17"]
    file.write_text(json.dumps(tokenizer))
    line = refusal(dataset, "--model", str(model))
    assert f"the tokenizer of the dataset is not the tokenizer of {model}: '1" in line
    assert f"pack with --tokenizer {model}" in line


def test_folder_names_contain_the_rule(dataset, model):
    options = ["--dump_folder", "outputs/a-{rule}", "--loss.rule", "standard", "--export", "hf/{rule}"]
    config = complete(config_of(dataset, "--model", str(model), *options))
    assert (config.dump_folder, config.export) == ("outputs/a-standard", "hf/standard")
