import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from exact_titan.errors import InputError
from exact_titan.models.hf_config import read_architecture
from exact_titan.models.hf_weights import INDEX_NAME, check_weights, hf_name, native_name
from tests.checkpoints import transformers_model


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in one file."""
    transformers_model("llama").save_pretrained(tmp_path)
    return tmp_path


def check(folder) -> None:
    check_weights(folder, read_architecture(folder))


def change(folder, change_tensors) -> None:
    tensors = load_file(folder / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_names_are_converted_in_both_directions():
    assert hf_name("layers.17.attention.qkv_linear.wq.bias") == "model.layers.17.self_attn.q_proj.bias"
    assert hf_name("layers.0.attention_norm.weight") == "model.layers.0.input_layernorm.weight"
    assert hf_name("norm.weight") == "model.norm.weight"
    with pytest.raises(KeyError):
        hf_name("layers.0.moe.weight")


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen2", "llama with wide heads", "qwen3", "smollm3"])
def test_complete_folders_pass(tmp_path, name):
    model = transformers_model(name)
    model.save_pretrained(tmp_path / "one")
    check(tmp_path / "one")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    check(tmp_path / "sharded")
    names = read_architecture(tmp_path / "one").tensors()
    assert all(hf_name(native_name(one)) == one for one in names)


def test_an_output_layer_in_a_tied_folder_is_ignored(tmp_path):
    transformers_model("llama tied").save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(256, 64)}))
    check(tmp_path)


def test_frequencies_that_old_versions_saved_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    check(folder)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change_tensors", "message"),
    [
        (lambda tensors: tensors.pop(NORM), "the weights lack the tensor model.norm.weight, 64 in "),
        (lambda t: t.update({NORM: torch.ones(65)}), "the tensor model.norm.weight is 65, but "),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(255, 64)}),
            "the tensor lm_head.weight is 255 x 64, but ",
        ),
        (lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)}), "model.norm.weight has the dtype I8"),
        (
            lambda t: t.update({"model.extra.weight": torch.ones(1)}),
            "the tensor model.extra.weight is not in the model of ",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            "the tensor model.layers.0.self_attn.q_proj.bias is not in the model of ",
        ),
    ],
)
def test_weights_for_another_architecture_are_refused_by_tensor(folder, change_tensors, message):
    change(folder, change_tensors)
    with pytest.raises(InputError) as caught:
        check(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
    transformers_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"the shard {lost.name} of model.safetensors.index.json is missing"):
        check(tmp_path)


def test_an_unreadable_index_is_named(folder):
    for content in ("{", "[]", '{"weight_map": 3}', json.dumps({"metadata": {}})):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is not a safetensors index"):
            check(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", "", None, 3, ["a"]])
def test_an_index_names_only_files_of_the_folder(folder, name):
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
    with pytest.raises(InputError, match=rf"{INDEX_NAME} names .*, which is not a file of the folder"):
        check(folder)


def test_weights_may_be_links_to_a_shared_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "weights"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)
    check(folder)


def test_a_pipe_is_no_file_of_weights(folder):
    os.mkfifo(folder / "more.safetensors")
    with pytest.raises(InputError, match=r"more\.safetensors is not a file"):
        check(folder)


@pytest.mark.parametrize(
    "header",
    {
        "a huge header": (2**62, b"{}"),
        "a header longer than the file": (1000, b"{}"),
        "no JSON": (4, b"abcd"),
        "nested": (40_000, b"[" * 40_000),
        "data outside": (None, {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}),
        "a huge shape": (None, {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}),
        "a negative shape": (None, {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        "another data type": (None, {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}),
    }.items(),
    ids=lambda one: one[0],
)
def test_a_lying_header_is_one_line(folder, header):
    size, content = header[1]
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text) if size is None else size) + text + bytes(16)
    )
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or is not a safetensors file") as refused:
        check(folder)
    assert "\n" not in str(refused.value)


def test_a_truncated_shard_is_named(folder):
    file = folder / "model.safetensors"
    for content in (file.read_bytes()[:-1], struct.pack("<Q", 10**9), b"", b"<html>Not found</html>"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors is truncated or is not a safetensors file"):
            check(folder)


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no \.safetensors weights: download or save the model as safetensors"):
        check(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pytorch_model.bin is not read: pickles can run code"):
        check(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"the tensor .* is in consolidated.safetensors and model.safetensors"):
        check(folder)
