"""The attention work with which the ranks distribute the windows of a step, and the files that a step opens."""

import itertools
import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
import torch

from benchmarks.file_calls import counted
from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.dataset import PackedDataset
from exact_titan.dataset import dataset as dataset_module
from exact_titan.dataset.work import compute_work, section, work_file
from exact_titan.errors import InputError
from exact_titan.sampling.balance import attention_work, deal
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan import attention_work as module
from exact_titan.titan import shared_reading
from exact_titan.titan.loader import PackedDataLoader
from tests import warm_ranks
from tests.titan.test_training import argv

T = TypeVar("T")
WINDOW = 16


def shards_of_one_window(folder: Path, windows: int) -> Path:
    lengths = itertools.cycle([3, 9, 2, 40, 5])
    return write_dataset(
        folder / "packed", window=WINDOW, windows=windows, lengths=lengths, vocab_size=50, shard_tokens=1
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """520 shards of one window: two steps of 256 ranks."""
    return shards_of_one_window(tmp_path_factory.mktemp("large"), 520)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 shards of one window."""
    return shards_of_one_window(tmp_path_factory.mktemp("small"), 60)


def without_file(folder: Path, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        if file.name != "train-work.bin":
            (out / file.name).symlink_to(file) if file.is_dir() else shutil.copy(file, out)
    return out


def loader(
    folder: Path | str, rank: int, ranks: int, *, batch: int = 1, rounds: int = 2, **options
) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=str(folder), **options)
    built = config.build(dp_world_size=ranks, dp_rank=rank, seq_len=WINDOW, local_batch_size=batch)
    built.rounds_per_step = rounds
    return built


def per_step(built: PackedDataLoader) -> list[tuple[int, int]]:
    """Return the numbers of opens and of stats in two steps of one round, after the start."""
    built._step(0)
    batches, found = iter(built), []
    for _ in range(2):
        with counted() as calls:
            next(batches)
        found.append((calls.opened.total(), calls.stats.total()))
    return found


@pytest.mark.parametrize(("ranks", "batch"), [(8, 1), (256, 1), (4, 2), (128, 2)])
def test_a_step_opens_the_shards_of_the_ranks_own_windows_only(large, monkeypatch, ranks, batch):
    """One open for each window, and no stat, with 8 and with 256 ranks."""
    monkeypatch.setattr(dataset_module, "_OPEN_SHARDS", dataset_module._OpenShards(256))
    assert per_step(loader(large, ranks - 1, ranks, batch=batch, rounds=1)) == [(batch, 0), (batch, 0)]


def test_a_start_reads_the_manifest_and_the_work_once(large):
    with counted() as calls:
        loader(large, 100, 256)._step(0)
    opened = {Path(path).name: count for path, count in calls.opened.items() if path.startswith(str(large))}
    assert opened == {"manifest.json": 1, "train-work.bin": 1}
    shards = [count for path, count in calls.stats.items() if path.endswith(".safetensors")]
    assert set(shards) == {1}
    assert calls.stats.total() < len(shards) + 20


@pytest.mark.parametrize(("ranks", "batch", "rounds"), [(2, 1, 3), (3, 2, 2), (4, 4, 1)])
@pytest.mark.parametrize("infinite", [True, False])
def test_the_steps_of_a_mixture_are_those_of_the_segments(folder, tmp_path, ranks, batch, rounds, infinite):
    """The dataset without a file, the mixture and the padded last step have the windows of the plain algorithm."""
    other = write_dataset(tmp_path / "o", window=WINDOW, windows=40, lengths=mixed_lengths(WINDOW, 1), vocab_size=50)
    work_file(other, "train").unlink()
    built = loader(f"{folder}=2,{other}=1", 0, ranks, batch=batch, rounds=rounds, infinite=infinite)
    size = ranks * batch * rounds
    for first in (0, 5 * size, built.mixture.places_once() // size * size):
        windows = [built.window_at(place) for place in range(first, first + size)]
        assert infinite or first < 10 * size or None in windows
        left = rounds if built.order.places is None else -(-(built.order.places - first) // (ranks * batch))
        count = ranks * batch * min(rounds, left)
        work = [WINDOW**2 if one is None else attention_work(*one) for one in windows[:count]]
        dealt = deal(work, ranks=ranks, batch=batch)
        if dealt.size == ranks:  # a single window for each rank has no balance
            dealt = np.arange(ranks).reshape(1, ranks, 1)
        assert built._step(first).tolist() == (first + dealt).tolist()


def test_without_the_file_a_loader_reads_every_shard_once(folder, tmp_path, caplog):
    old = without_file(folder, tmp_path / "old")
    built, expected = loader(old, 3, 8), loader(folder, 3, 8)
    with caplog.at_level(logging.INFO):
        assert built._step(0).tolist() == expected._step(0).tolist()
    (line,) = (line for line in caplog.messages if "train-work.bin" in line)
    shards = len(built.mixture.datasets[0].record.shards)
    assert f"{old} has no train-work.bin" in line
    assert f"this start read the segments of all shards ({shards}) in " in line
    for (inputs, _), (same, _) in itertools.islice(zip(built, expected, strict=True), 4):
        assert inputs["places"].tolist() == same["places"].tolist()
    assert not (old / "train-work.bin").exists()


def on_ranks(calls: list[Callable[[], T]], monkeypatch: pytest.MonkeyPatch) -> list[T | InputError]:
    """Call one function on each rank. The ranks are threads. Return the results, or the errors."""
    ranks, own = len(calls), threading.local()
    barrier, box = threading.Barrier(ranks), {}

    def all_gather_object(found: list, mine: object) -> None:
        box[own.rank] = mine
        barrier.wait()
        found[:] = [box[rank] for rank in range(ranks)]
        barrier.wait()

    fake = SimpleNamespace(
        is_initialized=lambda: True,
        get_rank=lambda: own.rank,
        get_world_size=lambda: ranks,
        all_gather_object=all_gather_object,
    )
    monkeypatch.setattr(module, "dist", fake)
    monkeypatch.setattr(shared_reading, "dist", fake)
    results: list = [None] * ranks

    def run(rank: int) -> None:
        own.rank = rank
        try:
            results[rank] = calls[rank]()
        except InputError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def shared(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[PackedDataset | InputError]:
    """Share the work of the datasets of the ranks. Return the datasets, or the errors."""

    def share(folder: Path) -> PackedDataset:
        dataset = PackedDataset(folder)
        module.share_work([dataset])
        return dataset

    return on_ranks([partial(share, folder) for folder in folders], monkeypatch)


def test_the_ranks_divide_the_shards_for_the_joint_counts(folder, tmp_path, monkeypatch):
    other = write_dataset(tmp_path / "o", window=WINDOW, windows=40, lengths=mixed_lengths(WINDOW, 1), vocab_size=50)
    mixture = Mixture(f"{folder}=2,{other}=1")
    expected = torch.from_numpy(mixture.joint_counts)
    assert torch.equal(shared_reading.joint_counts(mixture), expected)
    monkeypatch.setattr(dataset_module, "_OPEN_SHARDS", dataset_module._OpenShards(256))
    with counted() as calls:
        results = on_ranks(3 * [partial(shared_reading.joint_counts, mixture)], monkeypatch)
    assert all(torch.equal(found, expected) for found in results)
    opened = [count for path, count in calls.opened.items() if path.endswith(".safetensors")]
    assert sum(opened) == len(opened) == sum(len(one.record.shards) for one in mixture.datasets)


def test_the_ranks_divide_the_shards_of_a_dataset_without_the_file(folder, tmp_path, monkeypatch, caplog):
    old = without_file(folder, tmp_path / "old")
    with caplog.at_level(logging.INFO), counted() as calls:
        results = shared([old, old, folder], monkeypatch)  # one machine has a copy with the file
    expected = compute_work(folder, PackedDataset(folder).record.shards, WINDOW)
    for one in results:
        assert np.array_equal(one.work[np.arange(len(one))], expected)
    shards = [count for path, count in calls.opened.items() if path.endswith(".safetensors")]
    assert sum(shards) == len(results[0].record.shards)
    (line,) = (line for line in caplog.messages if "train-work.bin" in line)
    assert f"({len(shards)}; {-(-len(shards) // 3)} on each of 3 ranks) in " in line
    with counted() as calls:
        shared([folder, folder], monkeypatch)
    assert not [path for path in calls.opened if path.endswith(".safetensors")]


def test_a_broken_shard_ends_all_ranks(folder, tmp_path, monkeypatch):
    old = without_file(folder, tmp_path / "old")
    content = (old / "train-00004.safetensors").read_bytes()
    (old / "train-00004.safetensors").write_bytes(b"\xff" * len(content))
    results = shared([old, old], monkeypatch)
    assert all("train-00004.safetensors is not a shard" in str(one) for one in results)


def test_a_wrong_number_with_a_digest_that_fits_ends_the_rank_that_reads_the_window(folder, tmp_path):
    copy = without_file(folder, tmp_path / "copy")
    shards = PackedDataset(folder).record.shards
    numbers = [compute_work(folder, [shard], WINDOW) for shard in shards]
    sections = (section(one + 1, shard, WINDOW) for one, shard in zip(numbers, shards, strict=True))
    work_file(copy, "train").write_bytes(b"".join(sections))
    batches = iter(loader(copy, 0, 2))
    with pytest.raises(InputError, match=r"train-work\.bin: window \d+ has the attention work \d+, and its segments"):
        next(batches)


def test_a_damaged_file_ends_the_start_of_two_ranks(dataset, tmp_path):
    copy = shutil.copytree(dataset.folder, tmp_path / "packed")
    file = work_file(copy, "train")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    options = argv(PackedDataset(copy), tmp_path / "out")
    done = warm_ranks.run(2, "exact_titan.train", *options, cwd=tmp_path)
    assert done.codes == [2, 2]
    (line,) = (line for line in done.stderr.splitlines() if "error:" in line)
    assert line.startswith(f"exact_titan.train: error: {file}: the numbers of train-00000.safetensors do not fit their")
    assert line.endswith("remove train-work.bin, and a run reads the numbers from the shards at its start")
    assert not (tmp_path / "out").exists()


def test_one_rank_needs_no_file(folder, tmp_path):
    copy = without_file(folder, tmp_path / "copy")
    work_file(copy, "train").write_bytes(b"damaged")
    next(iter(loader(copy, 0, 1)))
    with pytest.raises(InputError, match="cut short"):
        next(iter(loader(copy, 0, 2)))
