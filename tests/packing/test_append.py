from pathlib import Path
from types import SimpleNamespace

import pytest

from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.policies import POLICIES
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import append, merge, pack
from exact_titan.reports.policies import measure_policies
from tests.packing.conftest import Documents, contents

OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "shard_tokens": 3000}


@pytest.fixture
def dataset(documents: Documents) -> Path:
    """A packed dataset of source a. Sources b and c exist but are not packed."""
    for name in "abc":
        documents.write(name, files=2, documents=150, longest=60)
    options = {**OPTIONS, "tokenizer": documents.folder / "tokenizer.json", "part_bytes": 20_000}
    pack([documents.folder / "a"], out=documents.folder / "out", **options)
    return documents.folder / "out"


def add(dataset: Path, *names: str) -> Manifest:
    sources = [dataset.parent / name for name in names]
    return append(dataset, sources, shard_tokens=3000, part_bytes=20_000)


def windows(folder: Path, split: str) -> list[tuple[list[int], list[int]]]:
    data = PackedDataset(folder, split)
    return [(data[k]["input"].tolist(), data[k]["labels"].tolist()) for k in range(len(data))]


def test_new_windows_come_after_the_old_windows(documents: Documents, dataset: Path) -> None:
    before = Manifest.read(dataset)
    old = {split: windows(dataset, split) for split in ("train", "val")}
    old_shards = {name: content for name, content in contents(dataset).items() if name.endswith(".safetensors")}
    manifest = add(dataset, "b", "c")
    assert manifest == Manifest.read(dataset)
    assert manifest.fingerprint != before.fingerprint
    assert [source.name for source in manifest.sources] == ["a", "b", "c"]
    assert contents(dataset).items() >= old_shards.items()
    pack(
        [documents.folder / "b", documents.folder / "c"],
        tokenizer=documents.folder / "tokenizer.json",
        out=documents.folder / "alone",
        part_bytes=20_000,
        **OPTIONS,
    )
    for split in ("train", "val"):
        assert windows(dataset, split) == old[split] + windows(documents.folder / "alone", split)
    assert list(verify(dataset))
    assert [one.policy for one in measure_policies(dataset, manifest, "train")] == list(POLICIES)
    assert manifest.splits["train"].bucket_counts == PackedDataset(dataset).counts.tolist()
    assert not list(documents.folder.glob(".out*"))


def test_the_folder_does_not_change_the_bytes(documents: Documents, dataset: Path) -> None:
    (documents.folder / "there").mkdir()
    other = documents.folder / "there" / "out"
    options = {**OPTIONS, "tokenizer": documents.folder / "tokenizer.json", "part_bytes": 20_000}
    pack([documents.folder / "a"], out=other, **options)
    append(other, [documents.folder / "b"], shard_tokens=3000, part_bytes=20_000)
    add(dataset, "b")
    assert contents(other) == contents(dataset)


def test_an_interrupted_append_changes_nothing(
    documents: Documents, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(dataset)
    old = windows(dataset, "train")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # The new shards and the longer lengths exist. Only the manifest is still the old manifest.
    monkeypatch.setattr(Manifest, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        add(dataset, "b")
    assert Manifest.read(dataset) == manifest
    assert windows(dataset, "train") == old
    assert list(verify(dataset))
    assert measure_policies(dataset, manifest, "train")
    monkeypatch.undo()
    add(dataset, "c")
    assert [source.name for source in Manifest.read(dataset).sources] == ["a", "c"]
    assert list(verify(dataset))


def test_refused_appends_change_nothing(documents: Documents, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(dataset)
    with pytest.raises(InputError, match=r"out holds source a already \(as a\): leave it out"):
        add(dataset, "b", "a")
    with pytest.raises(InputError, match="none: no such folder"):
        append(documents.folder / "none", [documents.folder / "b"])
    (documents.folder / "b" / "001.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"001\.jsonl, line 1: not JSON"):
        add(dataset, "b")
    assert contents(dataset) == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, "os", SimpleNamespace(replace=full))
    with pytest.raises(InputError, match="out cannot be written: No space left on device: choose another"):
        add(dataset, "c")
    assert contents(dataset) == before
    (dataset / "tokenizer" / "tokenizer.json").write_text((documents.folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(InputError, match=r"tokenizer is not the tokenizer that .*out was packed with"):
        add(dataset, "c")
