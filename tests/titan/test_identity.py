"""run.json, the comparison of a resume with its checkpoint, and the comparison of the ranks."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from exact_titan.config import recipes
from exact_titan.dataset import PackedDataset
from exact_titan.models import hf_config
from exact_titan.runs.checkpoint_manifest import MANIFEST, why_incomplete
from exact_titan.runs.run_record import FILE_NAME, options_of, read_record
from exact_titan.titan.changes import decision
from tests import warm_ranks
from tests.support import pack_lengths, pack_renamed_copy
from tests.titan.test_training import SIZES, argv

SAVED = ["--checkpoint.enable", "--checkpoint.interval", "2"]


def train(nproc: int, folder: Path, *arguments: str) -> warm_ranks.Finished:
    return warm_ranks.run(nproc, "exact_titan.train", *arguments, cwd=folder)


def error(done: warm_ranks.Finished) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("exact_titan.train: error: ")]
    return line


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    done = train(2, folder, *argv(dataset, folder / "out", *SAVED, steps=2))
    assert done.codes == [0, 0], done.stderr
    return folder / "out"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def as_dictionary(config: Any) -> Any:
    if not dataclasses.is_dataclass(config):
        return config
    names = [field.name for field in dataclasses.fields(config)]
    return {name: as_dictionary(getattr(config, name)) for name in names if not name.startswith("_")}


@pytest.mark.parametrize("recipe", recipes())
def test_every_option_has_a_decision_for_a_resume(recipe):
    options = [name for name in options_of(as_dictionary(recipes()[recipe]())) if name != "model_spec"]
    assert "loss.alpha" in options
    assert "validator.dataloader.seed" in options
    for name in options:
        assert decision(name), name


def test_a_run_and_its_checkpoint_have_a_record(finished, dataset):
    record = read_record(finished)
    assert record is not None
    assert record.data["fingerprint"] == record.loss_data == dataset.manifest.fingerprint
    (data,) = record.data["datasets"]
    assert (data["path"], data["windows"]) == (str(dataset.folder.resolve()), len(dataset))
    assert record.validation is None
    assert record.weights["kind"] == "scratch"
    assert record.model["hidden_size"] == SIZES["dim"]
    (start,) = record.starts
    assert (start.ranks, start.hosts, start.replicas, start.shards, start.resumed_from) == (2, 1, 1, 2, 0)
    assert record.config["optimizer"]["lr"] == 1e-2
    assert not [name for name in options_of(record.config) if "._" in name]
    checkpoint = finished / "checkpoint/step-2"
    assert read_record(checkpoint) == record
    assert FILE_NAME in json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert why_incomplete(checkpoint) is None
    assert (finished / FILE_NAME).stat().st_mode & 0o777 == 0o644


def test_the_optimizer_has_the_values_of_the_command_line_from_the_next_step_on(run, dataset):
    changed = ["--optimizer.lr", "1e-5", "--optimizer.weight_decay", "5", "--optimizer.beta1", "0.5"]
    done = train(1, run.parent, *argv(dataset, run, *SAVED, *changed, "--optimizer.eps", "1e-4", steps=4))
    assert done.codes == [0], done.stderr
    group = "optimizer.param_groups.norm.weight"
    wanted = {f"{group}.{name}" for name in ("lr", "weight_decay", "betas", "eps")}
    before, after = (
        _load_state_dict_from_keys({*wanted, "tok_embeddings.weight"}, checkpoint_id=run / f"checkpoint/step-{step}")
        for step in (2, 4)
    )
    stored = {name.rpartition(".")[2]: value for name, value in options_of(after).items() if name in wanted}
    assert stored["weight_decay"] == 5
    assert tuple(stored["betas"]) == (0.5, 0.95)
    assert (stored["eps"], stored["lr"]) == (1e-4, 1e-5)
    moved = (after["tok_embeddings.weight"] - before["tok_embeddings.weight"]).abs().max()
    assert 0 < float(moved) < 2e-3  # two steps at the rate of the checkpoint move by 2e-2
    assert "from step 3 on: optimizer.lr 0.01 -> 1e-05" in done.stdout + done.stderr
    record = read_record(run)
    assert record is not None
    assert [start.resumed_from for start in record.starts] == [0, 2]


@pytest.mark.parametrize(
    ("options", "parts", "name"),
    [
        (
            ["--loss.rule", "standard", "--loss.alpha", "0.3"],
            ["rule exact, not standard", "alpha 0.15, not 0.3"],
            "loss",
        ),
        (["--loss.threshold", "8"], ["loss.threshold None, not 8"], "loss"),
        (["--architecture.rope_theta", "8000000"], ["rope_theta 500000.0, not 8000000.0"], "model"),
        (["--dataloader.seed", "3"], ["seed 0, not 3"], "seed"),
        (["--training.global_batch_size", "8"], ["global_batch_size 4, not 8"], "global_batch_size"),
    ],
)
def test_a_change_of_what_the_run_trains_is_refused_by_name(run, dataset, options, parts, name):
    done = train(1, run.parent, *argv(dataset, run, *SAVED, *options, steps=3))
    assert done.codes == [2]
    line = error(done)
    for part in parts:
        assert part in line
    assert line.endswith(f"--dataloader.allow_changed {name}")
    done = train(1, run.parent, *argv(dataset, run, *SAVED, *options, "--dataloader.allow_changed", name, steps=3))
    assert done.codes == [0], done.stderr
    if name == "model":
        assert hf_config.read_architecture(run / "model").rope_theta == 8e6


def test_a_renamed_copy_of_the_data_resumes_a_run(run, dataset, tmp_path):
    copy = pack_renamed_copy(dataset, tmp_path / "copy")
    assert copy.manifest.sources != dataset.manifest.sources
    done = train(1, run.parent, *argv(copy, run, *SAVED, steps=3))
    assert done.codes == [0], done.stderr
    record = read_record(run)
    assert record is not None
    assert [start.resumed_from for start in record.starts] == [0, 2]
    assert record.data["datasets"][0]["path"] == str(copy.folder.resolve())


def test_the_default_threshold_may_be_written_out(run, dataset):
    done = train(1, run.parent, *argv(dataset, run, *SAVED, "--loss.threshold", str(dataset.window // 4), steps=3))
    assert done.codes == [0], done.stderr


def test_without_a_checkpoint_the_model_folder_is_rewritten(run, dataset):
    shutil.rmtree(run / "checkpoint")
    done = train(1, run.parent, *argv(dataset, run, "--architecture.rope_theta", "777", steps=1))
    assert done.codes == [0], done.stderr
    assert hf_config.read_architecture(run / "model").rope_theta == 777


def test_a_finished_run_has_nothing_to_do(run, dataset):
    export = run.parent / "exported"
    for words in ("2 of 2 steps are done: nothing to train", f"{export} exists already"):
        done = train(2, run.parent, *argv(dataset, run, *SAVED, "--export", str(export), steps=2))
        assert done.codes == [0, 0], done.stderr
        assert words in done.stdout
        assert (run / "exit_code").read_text() == "0\n"
        assert (export / "config.json").is_file()
    done = train(2, run.parent, *argv(dataset, run, *SAVED, steps=1))
    assert done.codes == [2, 2]
    assert "training.steps is 1, but" in error(done)


@pytest.mark.parametrize("option", ["model_only", "in_hf"])
def test_a_checkpoint_of_the_weights_alone_is_named_and_not_called_damaged(dataset, tmp_path, option):
    weights = ["--checkpoint.last_save_model_only"]
    if option == "in_hf":
        weights.append("--checkpoint.last_save_in_hf")
    options = [*SAVED, *weights, "--checkpoint.interval", "9"]
    assert train(1, tmp_path, *argv(dataset, tmp_path / "out", *options, steps=1)).codes == [0]
    done = train(1, tmp_path, *argv(dataset, tmp_path / "out", *options, steps=2))
    assert done.codes == [2]
    assert "the weights without" in error(done) or "Hugging Face weights without the optimizer" in error(done)
    assert f"last_save_{option}" in error(done)
    assert "damaged" not in error(done)


def test_another_dataset_on_rank_1_ends_all_ranks_with_both_fingerprints(dataset, tmp_path):
    other = pack_lengths(tmp_path / "other", [100] * 30, seq_len=64, seed=3)
    done = run_apart(tmp_path, dataset, other.folder)
    assert done.codes == [2, 2]
    line = error(done)
    assert "rank 1 on " in line
    assert dataset.manifest.fingerprint in line
    assert PackedDataset(other.folder).manifest.fingerprint in line
    assert (tmp_path / "out/exit_code").read_text() == "2\n"


def test_a_missing_dataset_on_rank_1_ends_all_ranks_with_the_words_of_rank_1(dataset, tmp_path):
    (tmp_path / "out").mkdir()
    done = run_apart(tmp_path, dataset, tmp_path / "nothing")
    assert done.codes == [2, 2]
    assert "rank 1 on " in error(done)
    assert "nothing" in error(done)
    assert (tmp_path / "out/exit_code").read_text() == "2\n"


def test_the_same_dataset_under_another_path_is_no_difference(dataset, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "copy")
    assert run_apart(tmp_path, dataset, tmp_path / "copy").codes == [0, 0]


def run_apart(folder: Path, dataset: PackedDataset, other: Path) -> warm_ranks.Finished:
    """Train one step on two ranks. Rank 1 has another path of the dataset."""
    return warm_ranks.run(
        2, "tests.titan.train_apart", other, *argv(dataset, folder / "out", steps=1), cwd=folder, timeout=100
    )
