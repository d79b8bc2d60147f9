"""The values that preflight fills in for several datasets. The options that it refuses are in test_train.py."""

import itertools
import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.synthetic import write_dataset
from exact_titan.config import load_config
from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.exposure import bucket_weights
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.loader import PackedDataLoader, open_mixture
from exact_titan.titan.preflight import complete, packed_tokenizer
from tests import warm_ranks
from tests.support import pack_lengths
from tests.titan.test_training import argv


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Three datasets. The last dataset has no validation split."""
    folder = tmp_path_factory.mktemp("preflight")
    other = pack_lengths(folder / "other", [100] * 20, seq_len=64, val_fraction=0.2, seed=3)
    bare = pack_lengths(folder / "bare", [100] * 20, seq_len=64, seed=4)
    return dataset.folder, other.folder, bare.folder


def completed(path: str, *options: str):
    argv = ["--config", "from_scratch", "--training.seq_len", "64", "--dataloader.dataset_path", path]
    return complete(load_config([*argv, "--training.global_batch_size", "8", "--training.steps", "100", *options]))


def test_the_whole_validation_split_of_every_dataset_that_has_one(folders):
    path = ",".join(f"{folder}={weight}" for folder, weight in zip(folders, (3, 1.5, 1), strict=True))
    config = completed(path)
    assert config.validator.dataloader.dataset_path == f"{folders[0]},{folders[1]}"
    assert config.validator.dataloader.infinite is False
    # A second completion changes nothing.
    assert complete(config).validator.dataloader == config.validator.dataloader


def test_validation_with_a_fixed_number_of_steps_is_mixed_by_weight(folders):
    path = ",".join(f"{folder}={weight}" for folder, weight in zip(folders, (3, 1.5, 1), strict=True))
    config = completed(path, "--validator.steps", "2")
    assert config.validator.dataloader.dataset_path == f"{folders[0]}=3,{folders[1]}=3/2"


def test_validation_on_a_separate_dataset(folders):
    config = completed(f"{folders[0]}=3,{folders[2]}=1", "--validator.dataloader.dataset_path", str(folders[1]))
    assert config.validator.dataloader.dataset_path == str(folders[1])


def test_the_loss_weighs_by_the_mixtures_counts(folders):
    path = f"{folders[0]}=3,{folders[1]}=1"
    config = completed(path)
    assert config.loss.dataset_path == path
    mixture, one = Mixture(path), Mixture(str(folders[0]))
    expected, other = (
        bucket_weights(torch.from_numpy(each.counts), each.buckets.lower_bounds, threshold=16)
        for each in (mixture, one)
    )
    assert torch.equal(config.loss.build().weights_n, expected)
    assert not torch.equal(expected, other)


def test_the_tokenizer_is_from_the_first_dataset(folders):
    config = completed(f"{folders[1]}=3,{folders[0]}=1")
    assert packed_tokenizer(config) == folders[1] / "tokenizer"
    assert config.hf_assets_path == str(folders[1] / "tokenizer")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[" * 200_000),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[" * 200_000),
        ("tokenizer_config.json", '{"chat_template": "{% for"}'),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded(folders, tmp_path, name, content):
    copy = shutil.copytree(folders[2], tmp_path / "packed")
    (copy / "tokenizer" / name).write_text(content)
    with pytest.raises(
        InputError, match=r"the tokenizer in .*packed/tokenizer cannot be loaded \(.+\): copy "
    ) as raised:
        completed(str(copy), "--validator.no-enable")
    assert "\n" not in str(raised.value)


def test_the_log_says_how_often_each_dataset_is_read(folders, dataset, caplog):
    with caplog.at_level(logging.INFO):
        completed(f"{folders[0]}=3,{folders[1]}=1")
    line = f"{folders[0]}: 600 of the run's 800 windows, {600 / len(dataset):.3g} epochs of its {len(dataset)}"
    assert line in caplog.messages


def test_a_start_completes_the_config_once_and_opens_each_dataset_once(folders, tmp_path):
    """The run has two ranks, two datasets, two validations, and weights from the counts of both datasets."""
    path = f"{folders[0]}=3,{folders[1]}=1"
    validated = ["--validator.enable", "--validator.freq", "2", "--dataloader.dataset_path", path]
    options = argv(PackedDataset(folders[0]), tmp_path / "out", *validated, steps=4)
    done = warm_ranks.run(2, "tests.titan.counted_train", tmp_path, *options, cwd=tmp_path)
    assert done.codes == [0, 0], done.stderr
    shards = [str(file) for folder in folders[:2] for file in folder.glob("*.safetensors")]
    assert len(shards) == 4
    checked: Counter[str] = Counter()
    for rank in (0, 1):
        calls = json.loads((tmp_path / f"{rank}.json").read_text())
        assert calls["complete"] == {"calls": 1}
        assert calls["manifest"] == {str(folder): 1 for folder in folders[:2]}
        checked.update(calls["shard"])
    # The ranks of a machine divide the shards.
    assert checked == dict.fromkeys(shards, 1)


def test_the_ranks_of_a_machine_divide_the_shards(tmp_path, monkeypatch):
    lengths = itertools.repeat(20)
    folder = write_dataset(tmp_path / "packed", window=64, windows=7, lengths=lengths, vocab_size=50, shard_tokens=1)
    shards = sorted(folder.glob("*.safetensors"))
    shards[3].write_bytes(shards[3].read_bytes()[:-1])
    config = PackedDataLoader.Config(dataset_path=str(folder))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        open_mixture(config, 64)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(InputError, match=rf"shard {shards[3]} is cut short or changed"):
        open_mixture(config, 64)
    monkeypatch.undo()
    with pytest.raises(InputError, match="is cut short or changed"):
        open_mixture(config, 64)


def test_the_open_datasets_are_not_in_the_saved_config(folders):
    config = completed(f"{folders[0]}=3,{folders[1]}=1")
    assert config.dataloader._mixture is config.loss._mixture is not None
    assert "_mixture" not in json.dumps(config.to_dict(), default=str)


def test_a_changed_path_is_opened(folders):
    config = completed(str(folders[0]))
    other = replace(config.dataloader, dataset_path=str(folders[1]))
    assert open_mixture(other, 64).datasets[0].folder == folders[1]
    assert open_mixture(replace(config.dataloader, split="val", infinite=False), 64).split == "val"


def test_a_tokenizer_with_a_link_out_of_its_folder(folders, tmp_path):
    copy = shutil.copytree(folders[2], tmp_path / "packed")
    (tmp_path / "private.json").write_text("{}")
    (copy / "tokenizer" / "special_tokens_map.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(InputError, match=r"special_tokens_map\.json is a link to .*private\.json, which is outside of"):
        completed(str(copy), "--validator.no-enable")
