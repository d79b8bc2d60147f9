"""What preflight fills in for several datasets; what it refuses is in test_train.py."""

import logging
from pathlib import Path

import pytest
import torch

from exact_titan.config import load_config
from exact_titan.exposure import bucket_weights
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.preflight import complete, packed_tokenizer
from tests.support import pack_lengths


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Three datasets; the last has no windows to validate on."""
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
    # The trainer completes the config again.
    assert complete(config).validator.dataloader == config.validator.dataloader


def test_validation_that_is_cut_short_is_mixed_by_weight(folders):
    path = ",".join(f"{folder}={weight}" for folder, weight in zip(folders, (3, 1.5, 1), strict=True))
    config = completed(path, "--validator.steps", "2")
    assert config.validator.dataloader.dataset_path == f"{folders[0]}=3,{folders[1]}=3/2"


def test_validation_on_a_dataset_of_its_own(folders):
    config = completed(f"{folders[0]}=3,{folders[2]}=1", "--validator.dataloader.dataset_path", str(folders[1]))
    assert config.validator.dataloader.dataset_path == str(folders[1])


def test_the_loss_weighs_by_the_mixtures_counts(folders):
    path = f"{folders[0]}=3,{folders[1]}=1"
    config = completed(path)
    assert config.loss.dataset_path == path
    mixture, one = Mixture(path), Mixture(str(folders[0]))
    expected, other = (
        bucket_weights(torch.from_numpy(each.counts), each.buckets.lower_bounds, threshold=16, min_count=1)
        for each in (mixture, one)
    )
    assert torch.equal(config.loss.build().weights_n, expected)
    assert not torch.equal(expected, other)


def test_the_tokenizer_is_that_of_the_first_dataset_named(folders):
    config = completed(f"{folders[1]}=3,{folders[0]}=1")
    assert packed_tokenizer(config) == folders[1] / "tokenizer"
    assert config.hf_assets_path == str(folders[1] / "tokenizer")


def test_the_log_says_how_often_each_dataset_is_read(folders, dataset, caplog):
    with caplog.at_level(logging.INFO):
        completed(f"{folders[0]}=3,{folders[1]}=1")
    line = f"{folders[0]}: 600 of the run's 800 windows, {600 / len(dataset):.3g} epochs of its {len(dataset)}"
    assert line in caplog.messages
