"""A part counts as finished only if its result and its files are whole. The part is packed again otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset.writer import SplitWriter
from exact_titan.packing.part_result import RESULT, PartResult

SHARD = "train-00000.safetensors"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The folder of a finished part."""
    writer = SplitWriter(tmp_path, "train", 8, np.dtype(np.uint16), 100)
    writer.add(np.arange(20, dtype=np.uint16))
    record = writer.finish()
    assert record is not None
    PartResult({}, {"train": record}).write(tmp_path)
    return tmp_path


def rename_shard(part: Path) -> None:
    """Name a shard outside the folder. The merge would move that file into the dataset."""
    content = json.loads((part / RESULT).read_text())
    content["splits"]["train"]["shards"][0]["file"] = "../shard"
    (part / SHARD).rename(part.parent / "shard")
    (part / RESULT).write_text(json.dumps(content))


DAMAGE: list[Callable[[Path], object]] = [
    lambda part: (part / RESULT).write_text('{"sources": '),
    lambda part: (part / RESULT).write_text("[" * 200_000),
    lambda part: (part / RESULT).write_text("{}"),
    lambda part: (part / SHARD).unlink(),
    lambda part: (part / SHARD).write_bytes((part / SHARD).read_bytes()[:-1]),
    lambda part: (part / "train-lengths.npy").unlink(),
    rename_shard,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_not_finished(part: Path, damage: Callable[[Path], object]) -> None:
    assert PartResult.read(part) is not None
    damage(part)
    assert PartResult.read(part) is None
