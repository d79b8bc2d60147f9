import json
import re

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.dataset import PackedDataset
from exact_titan.dataset.lengths import lengths_file, read_lengths
from exact_titan.errors import InputError
from exact_titan.packing import pack
from exact_titan.titan.target_losses import Documents
from tests.support import pack_lengths
from tests.titan.test_training import argv, record


@pytest.fixture
def datasets(tmp_path) -> list[PackedDataset]:
    """A concatenated dataset and a best-fit dataset. Both cut documents of more than 64 inputs."""
    first = pack_lengths(tmp_path / "a", [30, 200, 5, 64, 90], seq_len=64)
    pack_lengths(tmp_path / "b", [150, 20, 30, 65, 10, 128], seq_len=64, seed=1)
    out = tmp_path / "best_fit"
    source, tokenizer = tmp_path / "b/documents.jsonl", tmp_path / "b/tokenizer.json"
    pack([source], tokenizer=tokenizer, seq_len=64, out=out, policy="best_fit")
    return [first, PackedDataset(out)]


def test_a_document_keeps_its_number_over_windows_and_datasets_follow_each_other(datasets):
    documents = Documents(datasets, "train")
    first = 0
    for dataset in datasets:
        found = [documents.of(dataset, k) for k in range(len(dataset))]
        for k, one in enumerate(found):
            window = dataset[k]
            target = (window["labels"] != -100).numpy()
            assert len(one) == target.sum()
            # A new segment starts where the position is 0. Two segments of a window are of two documents.
            starts = (window["positions"].numpy()[target] == 0)[1:]
            assert (np.diff(one) != 0).tolist() == starts.tolist()
        lengths = read_lengths(dataset.folder, "train", dataset.record.documents)
        assert np.bincount(np.concatenate(found) - first).tolist() == (lengths - 1).tolist()
        first += dataset.record.documents


def test_lengths_that_are_missing_or_of_other_windows_are_refused(datasets):
    file = lengths_file(datasets[0].folder, "train")
    lengths = np.load(file)
    np.save(file, lengths[::-1] + 1)
    with pytest.raises(InputError, match="does not fit the manifest: its documents have"):
        Documents(datasets, "train")
    file.unlink()
    with pytest.raises(InputError, match=r"train-lengths\.npy is missing"):
        Documents(datasets, "train")


@pytest.mark.slow
def test_compare_reads_runs_of_several_datasets(dataset, tmp_path, capsys):
    other = pack_lengths(tmp_path / "other", [40] * 60, seq_len=64, val_fraction=0.2, seed=2)
    mixture = f"{dataset.folder}=2,{other.folder}=1"
    validated = ["--validator.enable", "--validator.freq", "2", "--dataloader.dataset_path", mixture]
    specs = [
        {
            "name": rule,
            "trainer": "exact",
            "argv": argv(dataset, tmp_path / rule, *validated, "--loss.rule", rule, steps=2),
        }
        for rule in ("standard", "exact")
    ]
    record(1, tmp_path, *specs)
    assert main(["compare", str(tmp_path / "standard"), str(tmp_path / "exact")]) == 0
    printed = capsys.readouterr().out
    targets = sum(PackedDataset(one.folder, "val").record.targets for one in (dataset, other))
    (validation,) = [
        one for one in map(json.loads, (tmp_path / "exact/metrics.jsonl").read_text().splitlines()) if "windows" in one
    ]
    assert sum(bucket["targets"] for bucket in validation["buckets"].values()) == targets
    assert re.search(rf"{targets:,}", printed), printed
