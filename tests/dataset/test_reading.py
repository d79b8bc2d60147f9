import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.shards import Shard, write_shard
from exact_titan.dataset.work import work_file
from exact_titan.errors import InputError
from exact_titan.reports.window import window_report
from exact_titan.titan.loader import PackedDataLoader

ARRAYS = ("tokens", "segment_start", "segment_length", "window_segments")


@pytest.fixture
def broken(dataset: PackedDataset, tmp_path: Path) -> Callable[[str, int, int], Path]:
    """Make a copy of the dataset with one changed number in its shard. The sizes do not change."""

    def change(name: str, index: int, value: int) -> Path:
        folder = shutil.copytree(dataset.folder, tmp_path / "packed")
        file = folder / dataset.record.shards[0].file
        shard = Shard(file)
        arrays = {one: np.array(getattr(shard, one)) for one in ARRAYS}
        arrays[name][index] = value
        write_shard(file, arrays)
        return folder

    return change


def loader(folder: Path, ranks: int = 1, rank: int = 0) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=str(folder), infinite=False)
    built = config.build(dp_world_size=ranks, dp_rank=rank, seq_len=64, local_batch_size=1)
    built.rounds_per_step = 2
    return built


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("segment_start", 3, 2**60),
        ("segment_start", 3, -(2**40)),
        ("segment_length", 3, -7),
        ("window_segments", 1, 2**50),
    ],
)
def test_segments_that_are_none_are_one_line(broken, name, index, value):
    folder = broken(name, index, value)
    with pytest.raises(
        InputError, match=rf"^window \d of {folder} is broken \(.*`exact-titan verify {folder}` says what is"
    ):
        list(loader(folder))
    with pytest.raises(InputError, match=rf"^window \d of {folder} is broken "):
        [window_report(folder, window) for window in range(3)]


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [("window_segments", 1, 2**50), ("segment_length", 0, 2**31 - 1), ("segment_length", 5, 0)],
)
def test_segments_that_are_none_are_one_line_where_the_work_is_looked_up(broken, name, index, value):
    """The rank of the window checks its segments. The read of a window would allocate the memory of a broken length."""
    folder = broken(name, index, value)
    with pytest.raises(InputError, match=rf"^window \d of {folder} is broken "):
        list(chain.from_iterable(loader(folder, 2, rank) for rank in range(2)))
    # Without the file of attention work, the first step looks up the windows of all ranks.
    work_file(folder, "train").unlink()
    with pytest.raises(InputError, match=rf"^the windows of {folder}/train-00000.safetensors are broken "):
        next(iter(loader(folder, 2)))


def test_a_token_id_that_the_tokenizer_does_not_have_is_named(broken, dataset):
    folder = broken("tokens", 70, 300)
    windows = [k for k in range(len(dataset)) if 300 in PackedDataset(folder)[k]["input"]]
    message = rf"^window {windows[0]} of {folder} is broken \(it has the token id 300, and its tokenizer has 256 ids\)"
    with pytest.raises(InputError, match=message):
        list(loader(folder))
