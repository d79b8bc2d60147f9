"""Export after real runs: the exported weights are the weights that the run has loaded."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torchtitan.models.common.attention import create_varlen_metadata_for_document
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from exact_titan.errors import InputError
from exact_titan.models.hf_config import read_architecture
from exact_titan.runs.export import export
from exact_titan.runs.run_record import sampled_digest
from exact_titan.runs.weights_digest import weights_digest
from tests import warm_ranks
from tests.checkpoints import load_decoder, transformers_model

RUNNER = "tests.titan.recorded_runs"
MODELS = {"llama": "llama with scaled RoPE", "qwen2": "qwen2 tied", "qwen3": "qwen3", "smollm3": "smollm3"}


def arguments(dataset, *options: str) -> list[str]:
    return [
        *["--config", "from_scratch", "--dataloader.dataset_path", str(dataset.folder)],
        *["--training.seq_len", str(dataset.window), "--training.steps", "1", "--validator.no-enable"],
        *["--training.mixed-precision-param", "float32", "--training.global_batch_size", "2", *options],
    ]


def unchanged(name: str, model: Path, out: Path, dataset) -> dict:
    """Return a run of one step with learning rate 0, which does not change the weights."""
    options = ["--model", str(model), "--dump_folder", str(out), "--optimizer.lr", "0.0"]
    return {"name": name, "trainer": "exact", "argv": arguments(dataset, *options)}


def launch(nproc: int, runs: list[dict], folder: Path) -> dict:
    (folder / f"{nproc}.json").write_text(json.dumps(runs))
    done = warm_ranks.run(nproc, RUNNER, folder / f"{nproc}.json", folder / f"{nproc}.out", cwd=folder)
    assert done.codes == [0] * nproc, done.stdout + done.stderr
    return json.loads((folder / f"{nproc}.out").read_text())


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> Path:
    """Make ``<family>`` in bfloat16 shards, its runs ``<family>-<ranks>``, and ``stage2``, which starts from a run."""
    folder = tmp_path_factory.mktemp("runs")
    for family, name in MODELS.items():
        model = transformers_model(name).to(torch.bfloat16)
        model.save_pretrained(folder / family, max_shard_size="30KB")
        assert len(list((folder / family).glob("*.safetensors"))) > 2
    for nproc in (1, 2):
        specs = [unchanged(family, folder / family, folder / f"{family}-{nproc}", dataset) for family in MODELS]
        if nproc == 2:
            options = ["--start_from", str(folder / "llama-2"), "--dump_folder", str(folder / "stage2")]
            argv = arguments(dataset, *options, "--training.steps", "2", "--lr_scheduler.warmup_steps", "1")
            specs.append({"name": "stage2", "trainer": "exact", "argv": argv})
            hsdp = unchanged("hsdp", folder / "llama", folder / "hsdp", dataset)
            hsdp["argv"] += ["--parallelism.data_parallel_replicate_degree", "2"]
            hsdp["argv"] += ["--parallelism.data_parallel_shard_degree", "1"]
            specs.append(hsdp)
        launch(nproc, specs, folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def equal(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("nproc", [1, 2])
def test_exported_weights_equal_the_loaded_weights_bit_for_bit_on_any_number_of_ranks(runs, tmp_path, family, nproc):
    files = export(runs / f"{family}-{nproc}", tmp_path / "out")
    assert [file.name for file in files] == ["model.safetensors"]
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors(tmp_path / "out").values())
    assert equal(tmp_path / "out", runs / family)


def test_exported_weights_of_replicas_equal_the_loaded_weights(runs, tmp_path):
    export(runs / "hsdp", tmp_path / "out")
    assert equal(tmp_path / "out", runs / "llama")


@pytest.mark.parametrize("family", MODELS)
def test_the_digest_of_all_weights_does_not_depend_on_the_ranks_or_the_optimizer(runs, family):
    """The runs on 1 and on 2 ranks have the same weights."""
    one, two = (runs / f"{family}-{nproc}/checkpoint/step-1" for nproc in (1, 2))
    assert weights_digest(one) == weights_digest(two)
    assert sampled_digest(one.glob("*.distcp")) != sampled_digest(two.glob("*.distcp"))
    assert weights_digest(one) != weights_digest(runs / "stage2/checkpoint/step-2")


def test_an_export_is_loaded_again(runs, tmp_path):
    export(runs / "qwen2-2", tmp_path / "out")
    first, again = load_decoder(runs / "qwen2"), load_decoder(tmp_path / "out")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("family", MODELS)
def test_transformers_generates_the_same_text_from_the_export(runs, tmp_path, family):
    export(runs / f"{family}-2", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("17 18 19 20", return_tensors="pt").input_ids
    texts = []
    for folder in (runs / family, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        texts.append(tokenizer.decode(model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None)[0]))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 40


def test_large_exports_are_sharded_with_an_index(runs, tmp_path):
    files = export(runs / "llama-2", tmp_path / "out", max_shard_size="60KB")
    assert len(files) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(tmp_path / "out").values())
    assert equal(tmp_path / "out", runs / "llama")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_chosen_dtype_is_in_the_config(runs, tmp_path, dtype):
    export(runs / "llama-1", tmp_path / "out", dtype=dtype)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_the_config_has_the_same_values_in_the_keys_of_transformers_4_and_5(runs, tmp_path):
    export(runs / "llama-1", tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (runs / "llama", tmp_path / "out"))
    rope = before.pop("rope_parameters")
    expected = {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": before.pop("dtype")}
    # The tokenizer of the dataset names the end-of-text token.
    expected["eos_token_id"] = after["eos_token_id"]
    assert after == {**before, **expected}
    assert read_architecture(tmp_path / "out") == read_architecture(runs / "llama")


@pytest.mark.parametrize(("family", "loader"), [("llama", AutoTokenizer), ("qwen2", PreTrainedTokenizerFast)])
def test_transformers_tokenizes_like_the_dataset(runs, dataset, tmp_path, caplog, family, loader):
    export(runs / f"{family}-1", tmp_path / "out")
    raw = Tokenizer.from_file(str(dataset.folder / "tokenizer/tokenizer.json"))
    tokenizer = loader.from_pretrained(tmp_path / "out")
    assert tokenizer("17 18 99 3").input_ids == raw.encode("17 18 99 3").ids
    assert tokenizer.model_max_length == 256
    assert ("transformers 5 replaces the tokenizer" in caplog.text) == (loader is not AutoTokenizer)


def test_others_may_read_the_files_of_a_dataset_a_run_and_its_export(runs, dataset, tmp_path):
    before = os.umask(0o022)
    try:
        export(runs / "llama-2", tmp_path / "out", max_shard_size="60KB")
    finally:
        os.umask(before)
    files = [path for folder in (dataset.folder, runs / "llama-2", tmp_path / "out") for path in folder.rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in files}
    assert {path: mode for path, mode in modes.items() if mode != (0o755 if path.is_dir() else 0o644)} == {}


def test_a_disk_that_becomes_full_is_one_line_and_leaves_no_partial_export(runs, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("exact_titan.runs.export.save_file", full)
    with pytest.raises(InputError, match=r"out cannot be written \(No space left on device\): make room"):
        export(runs / "llama-1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_file_size_is_one_line_and_leaves_no_partial_export(runs, tmp_path):
    command = [sys.executable, "-m", "exact_titan.cli", "export", str(runs / "llama-1"), "--out", str(tmp_path / "out")]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "limited", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"exact-titan: error: {tmp_path / 'out'} cannot be written (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_on_another_disk_are_found_from_the_run_and_from_themselves(dataset, tmp_path):
    sizes = ["--architecture.dim", "32", "--architecture.n_layers", "1", "--architecture.n_heads", "4"]
    other, nested = tmp_path / "disk/run", "saved/a"
    specs = []
    for name, folder in (("other", str(other)), ("nested", nested)):
        options = ["--dump_folder", name, "--checkpoint.folder", folder, *sizes]
        specs.append({"name": name, "trainer": "exact", "argv": arguments(dataset, *options, "--optimizer.lr", "0.0")})
    follows = ["--dump_folder", "next", "--start_from", "other", "--optimizer.lr", "0.0"]
    specs.append({"name": "next", "trainer": "exact", "argv": arguments(dataset, *follows)})
    launch(1, specs, tmp_path)
    export(tmp_path / "other", tmp_path / "a")
    export(other / "step-1", tmp_path / "b")
    export(tmp_path / "next", tmp_path / "c")
    assert equal(tmp_path / "a", tmp_path / "b")
    # The next stage stores no other weights, because its learning rate is 0.
    assert equal(tmp_path / "a", tmp_path / "c")
    (tmp_path / "nested").rename(tmp_path / "moved")
    export(tmp_path / "moved", tmp_path / "d")
    export(tmp_path / "moved" / nested / "step-1", tmp_path / "e")
    assert equal(tmp_path / "d", tmp_path / "e")


def test_a_stage_starts_from_the_weights_of_the_previous_stage(runs, tmp_path):
    export(runs / "stage2", tmp_path / "step2")
    assert not equal(tmp_path / "step2", runs / "llama")
    distance = {
        name: (tensor.float() - tensors(runs / "llama")[name].float()).abs().max().item()
        for name, tensor in tensors(tmp_path / "step2").items()
    }
    # Two steps of AdamW change a weight by little more than twice the learning rate. bfloat16 rounds the result.
    assert max(distance.values()) < 0.02


def test_a_step_is_chosen_by_number_or_folder(runs, tmp_path):
    export(runs / "llama-1", tmp_path / "a", step=1)
    export(runs / "llama-1/checkpoint/step-1", tmp_path / "b")
    assert equal(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=r"has no complete checkpoint of step 7: there are 1"):
        export(runs / "llama-1", tmp_path / "c", step=7)


def test_a_run_from_scratch_exports_at_its_end_with_the_export_option(dataset, tmp_path):
    options = ["--dump_folder", "out-{rule}", "--export", "hf-{rule}", "--training.global_batch_size", "1"]
    sizes = ["--architecture.dim", "32", "--architecture.n_layers", "2", "--architecture.n_heads", "4"]
    done = warm_ranks.run(0, "exact_titan.train", *arguments(dataset, *options, *sizes), cwd=tmp_path)
    assert done.codes == [0], done.stdout + done.stderr
    assert "The weights are in hf-exact" in done.stdout + done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf-exact", dtype=torch.float32)
    assert model.generation_config.eos_token_id == dataset.manifest.tokenizer.eos_id
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(64)[None]
    with torch.no_grad():
        ours = load_decoder(tmp_path / "hf-exact")(tokens, positions, create_varlen_metadata_for_document(positions))
        torch.testing.assert_close(ours, model(tokens).logits, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf-exact")("17").input_ids == [17]


def test_nothing_is_overwritten_and_no_partial_export_remains(runs, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists already"):
        export(runs / "llama-1", tmp_path / "out")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        export(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(InputError, match="has no complete checkpoint: the run has not saved one yet"):
        export(tmp_path, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_without_a_config_is_named(runs, tmp_path):
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/step-1").symlink_to(runs / "llama-1/checkpoint/step-1")
    with pytest.raises(InputError, match="run/model is missing: the export reads the architecture from that folder"):
        export(tmp_path / "run", tmp_path / "out")


def test_a_checkpoint_of_another_model_is_named(runs, tmp_path):
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/step-1").symlink_to(runs / "llama-1/checkpoint/step-1")
    (tmp_path / "run/model").symlink_to(runs / "qwen2-1/model")
    with pytest.raises(InputError, match=r"the tensor .*wk.weight is 32 x 64, but this model.s is 64 x 64"):
        export(tmp_path / "run", tmp_path / "out")
