from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exact_titan.errors import InputError
from exact_titan.runs.records import ValidationSet
from exact_titan.runs.target_losses import TargetLosses, read_target_losses, target_losses_file, write_target_losses

LOSSES = TargetLosses(
    step=10,
    threshold=16,
    windows=ValidationSet("a=3,b=1", "val", 64, 5, 7),
    cross_entropy=np.array([1.5, 2.5, 3.5]),
    bucket=np.array([0, 1, 3]),
    document=np.array([0, 0, 9]),
    place=np.array([0, 1, 2**33]),
)


def kept(run: Path) -> list[str]:
    return sorted(file.stem.removeprefix("step-") for file in (run / "validation").iterdir())


@pytest.mark.parametrize("seed", [7, None])
def test_a_file_gives_back_what_was_written(tmp_path, seed):
    losses = replace(LOSSES, windows=replace(LOSSES.windows, seed=seed))
    write_target_losses(tmp_path, losses, keep=1)
    found = read_target_losses(tmp_path, 10)
    assert found is not None
    assert (found.step, found.threshold, found.windows) == (10, 16, losses.windows)
    dtypes = {"cross_entropy": "float32", "bucket": "uint8", "document": "int32", "place": "int64"}
    for name, dtype in dtypes.items():
        assert getattr(found, name).dtype == dtype
        assert getattr(found, name).tolist() == getattr(losses, name).tolist()
    assert read_target_losses(tmp_path, 11) is None


def test_17_bytes_a_target(tmp_path):
    many = {name: np.zeros(100_000, dtype=np.int64) for name in ("cross_entropy", "bucket", "document", "place")}
    write_target_losses(tmp_path, replace(LOSSES, **many), keep=1)
    assert target_losses_file(tmp_path, 10).stat().st_size == pytest.approx(17 * 100_000, abs=1000)


def test_the_last_files_stay_and_files_of_a_replaced_attempt_go(tmp_path):
    for step in (10, 20, 30, 40):
        write_target_losses(tmp_path, replace(LOSSES, step=step), keep=2)
    assert kept(tmp_path) == ["30", "40"]
    # The run resumed from step 10, and validates at step 20 again.
    write_target_losses(tmp_path, replace(LOSSES, step=20), keep=2)
    assert kept(tmp_path) == ["20"]


def test_the_files_of_both_weights_of_a_step_are_one_validation(tmp_path):
    average = replace(LOSSES, weights="ema", cross_entropy=LOSSES.cross_entropy + 1)
    for step in (10, 20, 30):
        for losses in (LOSSES, average):
            write_target_losses(tmp_path, replace(losses, step=step), keep=2)
    assert kept(tmp_path) == ["20", "20-ema", "30", "30-ema"]
    last, ema = read_target_losses(tmp_path, 30), read_target_losses(tmp_path, 30, "ema")
    assert last is not None
    assert ema is not None
    assert (last.weights, ema.weights) == ("last", "ema")
    assert (ema.cross_entropy - last.cross_entropy).tolist() == [1, 1, 1]
    # The run resumed from step 20 without the average, and validates step 20 again.
    write_target_losses(tmp_path, replace(LOSSES, step=20), keep=2)
    assert kept(tmp_path) == ["20"]
    assert read_target_losses(tmp_path, 20, "ema") is None


def test_a_damaged_file_is_named(tmp_path):
    write_target_losses(tmp_path, LOSSES, keep=1)
    file = target_losses_file(tmp_path, 10)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"step-10\.safetensors is damaged"):
        read_target_losses(tmp_path, 10)
