"""Runs, checkpoints and Hugging Face folders as the model of an evaluation."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import RopeOptions
from exact_titan.evaluation.model_folder import read_model
from exact_titan.evaluation.models import open_model
from exact_titan.models.hf_config import read_architecture
from exact_titan.models.hf_weights import native_name
from exact_titan.runs.checkpoint_manifest import write_manifest
from exact_titan.runs.run_folder import write_model_folder
from exact_titan.runs.run_record import RunRecord
from tests.evaluation.tiny_models import write_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def write_run(run: Path, folder: Path, *, steps=(3,), window: int | None = 128, before: Path | None = None) -> Path:
    """Write the output folder of a run whose checkpoints have the weights of a folder."""
    run.mkdir(parents=True)
    write_model_folder(run, json.loads((folder / "config.json").read_text()), folder)
    names = read_architecture(folder).tensors()
    weights = {
        native_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items() if name in names
    }
    for step in steps:
        changed = {name: tensor + step for name, tensor in weights.items()}
        checkpoint = run / "checkpoint" / f"step-{step}"
        dcp.save(changed, checkpoint_id=checkpoint, no_dist=True)
        write_manifest(checkpoint)
    if window is not None:
        start = {"kind": "scratch"} if before is None else {"kind": "run", "path": str(before)}
        training = {"training": {"dtype": "float32", "mixed_precision_param": "float32"}}
        RunRecord(training, {"window": window}, None, "", start, {}).write(run)
    return run


def test_a_folder_is_used_where_it_stands(folder, tmp_path):
    opened = open_model(folder, out=tmp_path / "out", window=64)
    assert opened.folder == folder
    assert opened.home == tmp_path / "out" / "models" / "tiny"
    assert open_model(folder, out=tmp_path / "out") == opened
    model = read_model(opened.home)
    assert model == opened.model
    assert (model.name, model.window, model.positions, model.step) == ("tiny", 64, 512, None)


def test_a_run_is_exported_once_and_found_again(folder, tmp_path, capsys):
    run = write_run(tmp_path / "run-a", folder, steps=(3, 7))
    opened = open_model(run, out=tmp_path / "out")
    assert (opened.model.name, opened.model.window, opened.model.step, opened.model.positions) == ("run-a", 128, 7, 512)
    assert "exporting" in capsys.readouterr().out
    exported = AutoModelForCausalLM.from_pretrained(opened.folder, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(exported.model.norm.weight, original.model.norm.weight + 7)
    again = open_model(run, out=tmp_path / "out")
    assert (again, capsys.readouterr().out) == (opened, "")
    with pytest.raises(InputError, match=r"models/run-a has another model of this name \(.*step 7\): name this model"):
        open_model(run / "checkpoint" / "step-3", out=tmp_path / "out", name="run-a")
    earlier = open_model(run / "checkpoint" / "step-3", out=tmp_path / "out")
    assert (earlier.model.name, earlier.model.step) == ("step-3", 3)
    assert earlier.model.weights != opened.model.weights


def test_a_fine_tuned_run_has_the_window_of_the_run_before(folder, tmp_path):
    long = write_run(tmp_path / "long", folder, window=256)
    short = write_run(tmp_path / "short", folder, window=64, before=long)
    assert open_model(short, out=tmp_path / "out").model.window == 256
    assert open_model(short, out=tmp_path / "out", window=32).model.window == 32
    old = write_run(tmp_path / "old", folder, window=None)
    assert open_model(old, out=tmp_path / "out").model.window is None


@pytest.mark.parametrize("scaling", ["yarn", "linear"])
def test_extended_rope_reaches_the_model(folder, tmp_path, scaling):
    opened = open_model(folder, out=tmp_path / "out", rope=RopeOptions(scaling, 4.0))
    assert (opened.model.name, opened.model.positions) == (f"tiny-{scaling}-4", 2048)
    model = AutoModelForCausalLM.from_pretrained(opened.folder)
    assert model.config.max_position_embeddings == 2048
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ratio = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    assert ratio[-1].item() == pytest.approx(4.0)
    assert ratio[0].item() == pytest.approx(1.0 if scaling == "yarn" else 4.0)
    torch.testing.assert_close(model.lm_head.weight, plain.lm_head.weight)
    # transformers 4 reads these two keys and ignores rope_parameters.
    config = json.loads((opened.folder / "config.json").read_text())
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]["rope_type"]) == (10_000.0, scaling)
    assert open_model(folder, out=tmp_path / "out", rope=RopeOptions(scaling, 4.0)) == opened


def test_rope_options_that_are_wrong(folder, tmp_path):
    with pytest.raises(InputError, match=r"--rope.factor is 1: the factor must be above 1"):
        open_model(folder, out=tmp_path / "out", rope=RopeOptions("yarn"))
    with pytest.raises(InputError, match=r"rope.factor is 1.7: 512 original positions times the factor are 870.4"):
        open_model(folder, out=tmp_path / "out", rope=RopeOptions("yarn", 1.7))
    scaled = open_model(folder, out=tmp_path / "out", rope=RopeOptions("yarn", 2.0)).folder
    with pytest.raises(InputError, match=r"RoPE is scaled already \(yarn\)"):
        open_model(scaled, out=tmp_path / "out", name="twice", rope=RopeOptions("yarn", 2.0))


def test_models_that_are_wrong(folder, tmp_path):
    other = write_model(tmp_path / "other" / "tiny", seed=1)
    open_model(folder, out=tmp_path / "out")
    with pytest.raises(InputError, match="another model of this name"):
        open_model(other, out=tmp_path / "out")
    assert open_model(other, out=tmp_path / "out", name="tiny-b").model.name == "tiny-b"
    (other / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"other/tiny has no tokenizer.json"):
        open_model(other, out=tmp_path / "out", name="c")
    assert not (tmp_path / "out" / "models" / "c").exists()
    (other / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="a file of weights is damaged"):
        open_model(other, out=tmp_path / "out", name="c")
    (other / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        open_model(other, out=tmp_path / "out", name="c")
    with pytest.raises(InputError, match="no such folder"):
        open_model(tmp_path / "nothing", out=tmp_path / "out")
    with pytest.raises(InputError, match="--name is 'a/b'"):
        open_model(folder, out=tmp_path / "out", name="a/b")
