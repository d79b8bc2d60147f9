import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_titan.dataset import PackedDataset
from exact_titan.dataset import dataset as dataset_module
from exact_titan.dataset.manifest import Manifest, ShardRecord, SourceRecord, SplitRecord
from exact_titan.dataset.shards import write_shard
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError
from exact_titan.packing import pack
from tests.support import pack_lengths

pytest_plugins = ["tests.text_fixtures"]

WINDOW = 8


@pytest.fixture
def folder(tmp_path: Path, word_tokenizer: Path, write_jsonl: Callable[[Path, list[str]], Path]) -> Path:
    """20 inputs in 3 windows of two shards: documents of 5, 10 and 8 tokens."""
    texts = [" ".join(map(str, range(first, last))) for first, last in ((1, 5), (11, 20), (31, 38))]
    source = write_jsonl(tmp_path / "documents.jsonl", texts)
    pack([source], tokenizer=word_tokenizer, seq_len=WINDOW, out=tmp_path / "out", shard_tokens=12)
    return tmp_path / "out"


def test_windows_by_hand(folder: Path) -> None:
    dataset = PackedDataset(folder)
    assert [entry.windows for entry in dataset.manifest.splits["train"].shards] == [2, 1]
    assert len(dataset) == 3
    assert (dataset.window, len(dataset.buckets), dataset.folder) == (WINDOW, 1, folder)
    rows = [{name: tensor.tolist() for name, tensor in dataset[k].items()} for k in (0, 1, 2)]
    assert rows[0] == {
        "input": [1, 2, 3, 4, 11, 12, 13, 14],
        "labels": [2, 3, 4, 0, 12, 13, 14, 15],
        "positions": [0, 1, 2, 3, 0, 1, 2, 3],
        "cu_seqlens": [0, 4, 8],
    }
    assert rows[1] == {
        "input": [15, 16, 17, 18, 19, 31, 32, 33],
        "labels": [16, 17, 18, 19, 0, 32, 33, 34],
        "positions": [0, 1, 2, 3, 4, 0, 1, 2],
        "cu_seqlens": [0, 5, 8],
    }
    assert rows[2] == {
        "input": [34, 35, 36, 37, 0, 0, 0, 0],
        "labels": [35, 36, 37, 0, -100, -100, -100, -100],
        "positions": [0, 1, 2, 3, 0, 1, 2, 3],
        "cu_seqlens": [0, 4, 8],
    }
    assert dataset.counts.tolist() == [20]


def test_types(folder: Path) -> None:
    window = PackedDataset(folder)[1]
    assert {name: tensor.dtype for name, tensor in window.items()} == {
        "input": torch.int64,
        "labels": torch.int64,
        "positions": torch.int64,
        "cu_seqlens": torch.int32,
    }


def test_read_fills_the_rows_of_a_batch(folder: Path) -> None:
    dataset = PackedDataset(folder)
    batch = np.full((3, 2, WINDOW), -1)
    for row, k in enumerate((2, 0)):
        cu_seqlens = dataset.read(k, *batch[:, row])
        assert cu_seqlens.dtype == np.int32
        for found, name in zip(batch[:, row], ("input", "labels", "positions"), strict=True):
            np.testing.assert_array_equal(found, dataset[k][name])


@pytest.mark.parametrize("k", [-1, 3, 10**9])
def test_out_of_range(folder: Path, k: int) -> None:
    with pytest.raises(IndexError, match=f"window {k} "):
        PackedDataset(folder)[k]


def test_segments_anywhere(tmp_path: Path) -> None:
    """The segments are not in the order of the tokens and do not fill every window, as with a best-fit policy."""
    arrays = {
        "tokens": np.arange(100, 140, dtype=np.uint32),
        "segment_start": np.array([30, 2, 10, 10], dtype=np.int64),
        "segment_length": np.array([3, 4, 1, 5], dtype=np.int32),
        "window_segments": np.array([0, 3, 4], dtype=np.int64),
    }
    size, sha256 = write_shard(tmp_path / "train-00000.safetensors", arrays)
    Manifest(
        sources=[SourceRecord("a", 1, 1, "0", 1, 1, {})],
        tokenizer=TokenizerRecord("t", "0", 200, "</s>", 0),
        window=WINDOW,
        policy="best_fit",
        token_dtype="uint32",
        val_fraction=0.0,
        splits={
            "train": SplitRecord(
                2, 13, 13, 3, 1, [13], [ShardRecord("train-00000.safetensors", size, sha256, 2, 40, 4)], [1]
            )
        },
    ).write(tmp_path)
    dataset = PackedDataset(tmp_path)
    first, second = dataset[0], dataset[1]
    assert first["input"].tolist() == [130, 131, 132, 102, 103, 104, 105, 110]
    assert first["labels"].tolist() == [131, 132, 133, 103, 104, 105, 106, 111]
    assert first["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert first["cu_seqlens"].tolist() == [0, 3, 7, 8]
    assert second["input"].tolist() == [110, 111, 112, 113, 114, 0, 0, 0]
    assert second["cu_seqlens"].tolist() == [0, 5, 8]


def test_a_shard_cut_short(folder: Path) -> None:
    shard = folder / "train-00001.safetensors"
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(InputError, match=r"train-00001\.safetensors is cut short or changed: .*pack it again$"):
        PackedDataset(folder)


def test_a_shard_is_missing(folder: Path) -> None:
    (folder / "train-00000.safetensors").unlink()
    with pytest.raises(InputError, match=r"train-00000\.safetensors is missing"):
        PackedDataset(folder)


def test_importing_it_needs_little() -> None:
    program = """if True:
        import sys
        import exact_titan.dataset
        print({name.split(".")[0] for name in sys.modules} & {"torchtitan", "datatrove", "matplotlib", "tokenizers"})
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_many_shards_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_OPEN_SHARDS", dataset_module._OpenShards(3))
    packed = [pack_lengths(tmp_path / name, [40] * 50, seq_len=16, seed=seed) for seed, name in enumerate("ab")]
    shards = [
        pack(
            [tmp_path / name / "documents.jsonl"],
            tokenizer=tmp_path / name / "tokenizer.json",
            seq_len=16,
            out=tmp_path / f"{name}-shards",
            shard_tokens=16,
        )
        for name in "ab"
    ]
    assert min(len(manifest.splits["train"].shards) for manifest in shards) > 100
    read = [PackedDataset(tmp_path / f"{name}-shards") for name in "ab"]
    before = len(os.listdir("/proc/self/fd"))
    for k in np.random.default_rng(0).permutation(len(packed[0])).tolist():
        for one, other in zip(packed, read, strict=True):
            assert torch.equal(one[k]["input"], other[k]["input"])
    assert len(os.listdir("/proc/self/fd")) <= before + 3
