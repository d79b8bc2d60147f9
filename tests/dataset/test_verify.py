import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.shards import Shard, write_shard
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import pack

pytest_plugins = ["tests.text_fixtures"]

SHARD = "train-00000.safetensors"


@pytest.fixture
def folder(tmp_path: Path, word_tokenizer: Path, write_jsonl: Callable[[Path, list[str]], Path]) -> Path:
    """Three windows of 8, the last one with 4 inputs."""
    source = write_jsonl(tmp_path / "documents.jsonl", ["1 2 3 4 5 6 7", "8 9", "10 11 12 13 14 15 16 17 18 19 20"])
    pack([source], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out")
    return tmp_path / "out"


def resign(folder: Path, arrays: dict[str, np.ndarray], **split: object) -> None:
    """Write other arrays and a manifest with their digest. Only the invariants can then find the mistake."""
    (folder / SHARD).unlink()
    size, sha256 = write_shard(folder / SHARD, arrays)
    manifest = Manifest.read(folder)
    record = manifest.splits["train"]
    shard = dataclasses.replace(record.shards[0], bytes=size, sha256=sha256)
    record = dataclasses.replace(record, shards=[shard], **split)
    dataclasses.replace(manifest, splits={"train": record}).write(folder)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    shard = Shard(folder / SHARD)
    names = ("tokens", "segment_start", "segment_length", "window_segments")
    return {name: getattr(shard, name).copy() for name in names}


def test_a_whole_dataset(folder: Path) -> None:
    lines = list(verify(folder))
    assert [line.split(":")[0] for line in lines] == ["manifest", "tokenizer", SHARD, "split train"]


@pytest.mark.parametrize("place", [0, 20, 300, -1])
def test_a_flipped_byte(folder: Path, place: int) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[place] ^= 1
    (folder / SHARD).write_bytes(content)
    PackedDataset(folder)
    with pytest.raises(InputError, match=r"train-00000\.safetensors: sha256: found .*: copy the dataset again or pack"):
        list(verify(folder))


def test_a_shard_cut_short(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])
    with pytest.raises(InputError, match="is cut short or changed"):
        list(verify(folder))


def test_another_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(InputError, match=r"tokenizer\.json: sha256"):
        list(verify(folder))
    file.unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        list(verify(folder))


@pytest.mark.parametrize(
    ("tensor", "index", "value", "message"),
    [
        ("tokens", 3, 300, "each token is in the vocabulary"),
        ("segment_start", 1, -1, "each segment and its last label lie within the tokens"),
        ("segment_start", -1, 30, "each segment and its last label lie within the tokens"),
        ("segment_length", 0, 6, "its windows are the windows that concat makes of the documents' lengths"),
        ("segment_length", 0, 9, "each window has at most its length in inputs"),
        ("segment_start", 1, 7, "each token is stored once"),
        ("tokens", 7, 5, "each document ends with the end-of-text token"),
        ("window_segments", -1, 2, "window_segments spans all segments"),
        ("window_segments", 0, 1, "window_segments spans all segments"),
        ("window_segments", 1, 4, "each window has a segment"),
    ],
)
def test_a_wrong_segment(folder: Path, tensor: str, index: int, value: int, message: str) -> None:
    changed = arrays(folder)
    changed[tensor][index] = value
    resign(folder, changed)
    with pytest.raises(InputError, match=message):
        list(verify(folder))


def test_a_token_in_no_window(folder: Path) -> None:
    changed = arrays(folder)
    changed["tokens"] = np.append(changed["tokens"], changed["tokens"][:1])
    resign(folder, changed)
    with pytest.raises(InputError, match=r"tokens: found 24, the manifest says 23"):
        list(verify(folder))
    manifest = Manifest.read(folder)
    record = manifest.splits["train"]
    record = dataclasses.replace(record, shards=[dataclasses.replace(record.shards[0], tokens=24)])
    dataclasses.replace(manifest, splits={"train": record}).write(folder)
    with pytest.raises(InputError, match="each token is in a window"):
        list(verify(folder))


def test_other_lengths(folder: Path) -> None:
    file = folder / "train-lengths.npy"
    lengths = np.load(file)
    np.save(file, lengths[::-1])
    with pytest.raises(InputError, match="its windows are the windows that concat makes of the documents' lengths"):
        list(verify(folder))
    file.unlink()
    with pytest.raises(InputError, match=r"train-lengths\.npy is missing"):
        list(verify(folder))


def test_another_policy(folder: Path) -> None:
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, policy="best_fit").write(folder)
    with pytest.raises(InputError, match="its windows are the windows that best_fit makes of the documents' lengths"):
        list(verify(folder))
    dataclasses.replace(manifest, policy="later").write(folder)
    with pytest.raises(InputError, match="policy is 'later', this version knows concat, best_fit"):
        list(verify(folder))


@pytest.mark.parametrize("key", ["windows", "tokens", "targets", "padding", "bucket_counts"])
def test_wrong_counts(folder: Path, key: str) -> None:
    value = getattr(Manifest.read(folder).splits["train"], key)
    resign(folder, arrays(folder), **{key: [value[0] + 1] if isinstance(value, list) else value + 1})
    with pytest.raises(InputError, match=f"{key} of train: found .*, the manifest says "):
        list(verify(folder))


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 64, b"\x02" + bytes(7) + b"{}"])
def test_not_a_shard(folder: Path, content: bytes) -> None:
    (folder / SHARD).write_bytes(content)
    manifest = Manifest.read(folder)
    record = manifest.splits["train"]
    shard = dataclasses.replace(record.shards[0], bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    dataclasses.replace(manifest, splits={"train": dataclasses.replace(record, shards=[shard])}).write(folder)
    with pytest.raises(InputError, match=r"train-00000\.safetensors is not a shard of a packed dataset"):
        list(verify(folder))
