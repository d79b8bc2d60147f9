import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.verify import verify
from exact_titan.dataset.work import AttentionWork, compute_work, section, work_file, write_work
from exact_titan.errors import InputError
from exact_titan.packing import append, pack
from exact_titan.sampling.balance import attention_work
from tests.packing.conftest import Documents

OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "shard_tokens": 2000}


def packed(folder: Path, out: Path, **options) -> Path:
    pack([folder / "a"], tokenizer=folder / "tokenizer.json", out=out, part_bytes=20_000, **OPTIONS, **options)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources a and b, and the packed dataset ``out`` of a."""
    documents = Documents(tmp_path_factory.mktemp("work"))
    for name in "ab":
        documents.write(name, files=2, documents=80, longest=90)
    packed(documents.folder, documents.folder / "out")
    return documents.folder


@pytest.fixture
def dataset(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source / "out", tmp_path / "out")


def each_window(dataset: PackedDataset) -> list[int]:
    """Return the attention work that the windows' borders give."""
    return [int((dataset[k]["cu_seqlens"].diff().long() ** 2).sum()) for k in range(len(dataset))]


def in_file(dataset: PackedDataset) -> list[int]:
    assert dataset.work is not None
    assert dataset.work.file == work_file(dataset.folder, dataset.split)
    return dataset.work[np.arange(len(dataset))].tolist()


@pytest.mark.parametrize("policy", ["concat", "best_fit"])
def test_the_file_has_the_work_of_every_window(source: Path, tmp_path: Path, policy: str) -> None:
    folder = packed(source, tmp_path / "out", policy=policy)
    for split in ("train", "val"):
        data = PackedDataset(folder, split)
        assert len(data.record.shards) > 1
        assert in_file(data) == each_window(data) == [attention_work(data, k) for k in range(len(data))]
        assert in_file(data) == compute_work(folder, data.record.shards, 64).tolist()
        assert data.work[np.array([len(data) - 1, 0])].tolist() == [in_file(data)[-1], in_file(data)[0]]
    assert "attention work" in list(verify(folder))[-1]


def test_a_dataset_of_an_older_version_gets_the_file_with_append(source: Path, dataset: Path) -> None:
    for split in ("train", "val"):
        work_file(dataset, split).unlink()
        assert PackedDataset(dataset, split).work is None
    assert not any("attention work" in line for line in verify(dataset))
    append(dataset, [source / "b"], shard_tokens=2000)
    for split in ("train", "val"):
        data = PackedDataset(dataset, split)
        assert in_file(data) == each_window(data)
    assert list(verify(dataset))


def test_append_keeps_the_sections_of_the_old_windows(source: Path, dataset: Path, monkeypatch) -> None:
    before = {split: work_file(dataset, split).read_bytes() for split in ("train", "val")}
    old_shards = set(dataset.glob("*.safetensors"))
    opened = count_computed(monkeypatch)
    append(dataset, [source / "b"], shard_tokens=2000)
    for split, content in before.items():
        assert work_file(dataset, split).read_bytes().startswith(content)
        data = PackedDataset(dataset, split)
        assert in_file(data) == each_window(data)
    assert set(opened) == set(dataset.glob("*.safetensors")) - old_shards
    assert list(verify(dataset))


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    from exact_titan.dataset import work

    opened: list[Path] = []
    shard = work.Shard
    monkeypatch.setattr(work, "Shard", lambda file: opened.append(file) or shard(file))
    return opened


def test_append_replaces_a_damaged_section(source: Path, dataset: Path) -> None:
    flip(work_file(dataset, "train"), 3)
    append(dataset, [source / "b"], shard_tokens=2000)
    data = PackedDataset(dataset)
    assert in_file(data) == each_window(data)


def test_an_interrupted_append_leaves_a_longer_file_that_fits_the_old_windows(source: Path, dataset: Path) -> None:
    manifest = (dataset / "manifest.json").read_bytes()
    append(dataset, [source / "b"], shard_tokens=2000)
    (dataset / "manifest.json").write_bytes(manifest)
    data = PackedDataset(dataset)
    assert in_file(data) == each_window(data)
    assert list(verify(dataset))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def refusals(dataset: Path) -> list[str]:
    """Return the messages of a run and of ``verify``."""
    messages = []
    for use in (lambda: PackedDataset(dataset).work, lambda: list(verify(dataset))):
        with pytest.raises(InputError) as refused:
            use()
        messages.append(str(refused.value))
    for message in messages:
        assert str(work_file(dataset, "train")) in message
        assert "\n" not in message
        assert "remove train-work.bin" in message or "is missing" in message or "is a link out" in message
    return messages


@pytest.mark.parametrize("place", [0, 100, -1, -40])
def test_a_flipped_byte_is_found(dataset: Path, place: int) -> None:
    flip(work_file(dataset, "train"), place)
    for message in refusals(dataset):
        assert "is damaged or belongs to another dataset" in message


def test_the_file_of_fewer_windows_is_found(source: Path, dataset: Path) -> None:
    """A file that is cut short, or an older version of exact_titan appended without the file."""
    file = work_file(dataset, "train")
    old = file.read_bytes()
    append(dataset, [source / "b"], shard_tokens=2000)
    for content in (old, b"", file.read_bytes()[:-1]):
        file.write_bytes(content)
        for message in refusals(dataset):
            assert f"is cut short or older than the manifest: it has {len(content)} bytes" in message
    file.unlink()
    assert PackedDataset(dataset).work is None


def test_the_file_of_other_shards_is_found(dataset: Path) -> None:
    """The sections of two shards changed places: all numbers are right, but belong to other windows."""
    data = PackedDataset(dataset)
    shards = data.record.shards
    work = [compute_work(dataset, [shard], 64) for shard in shards]
    work[0], work[1] = work[1], work[0]
    of = [shards[1], shards[0], *shards[2:]]
    sections = (section(numbers, shard, 64) for numbers, shard in zip(work, of, strict=True))
    data.work.file.write_bytes(b"".join(sections))
    for message in refusals(dataset):
        assert "does not fit" in message or "do not fit" in message or "not that of the windows" in message


def test_wrong_numbers_with_a_digest_that_fits_are_found_by_verify(dataset: Path) -> None:
    data = PackedDataset(dataset)
    shards = data.record.shards
    sections = (section(compute_work(dataset, [shard], 64) + 1, shard, 64) for shard in shards)
    data.work.file.write_bytes(b"".join(sections))
    with pytest.raises(InputError, match=r"train-work\.bin: its attention work is not that of the windows of .*train-"):
        list(verify(dataset))


def test_a_file_that_is_no_file(dataset: Path, tmp_path: Path) -> None:
    file = work_file(dataset, "train")
    content = file.read_bytes()
    file.unlink()
    file.symlink_to(tmp_path / "nothing")
    refusals(dataset)
    (tmp_path / "nothing").write_bytes(content)
    assert all("is a link out of its folder" in message for message in refusals(dataset))
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"train-work\.bin is not a file"):
        _ = PackedDataset(dataset).work


def broken(change: Callable[[bytearray], None], file: Path) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def test_a_broken_shard_gives_no_work(dataset: Path) -> None:
    data = PackedDataset(dataset)
    shard = data.record.shards[0]
    file = dataset / shard.file
    offset = file.stat().st_size - 2 * shard.tokens - 4 * shard.segments
    broken(lambda content: content.__setitem__(slice(offset, offset + 4), b"\xff" * 4), file)
    with pytest.raises(InputError, match=r"the windows of .*train-00000\.safetensors are broken"):
        compute_work(dataset, data.record.shards, 64)
    work_file(dataset, "train").unlink()
    with pytest.raises(InputError, match=r"train-00000\.safetensors are broken"):
        write_work(dataset, "train", data.record.shards, 64)
    assert not work_file(dataset, "train").exists()
    assert not list(dataset.glob(".*"))


def test_work_in_memory() -> None:
    assert AttentionWork([], np.arange(5), file=None)[np.array([4, 1])].tolist() == [4, 1]
