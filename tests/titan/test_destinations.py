from types import SimpleNamespace

import pytest

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.titan.destinations import check_destinations, check_disks


def check(folder, *options: str) -> None:
    check_destinations(load_config(["--config", "from_scratch", "--dump_folder", str(folder / "out"), *options]))


def test_destinations_are_tried_and_not_made(tmp_path):
    check(tmp_path, "--export", str(tmp_path / "hf"), "--checkpoint.folder", str(tmp_path / "disk/run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("dump_folder", []),
        ("checkpoint.folder", []),
        ("metrics.save_tb_folder", []),
        ("comm.save_traces_folder", []),
        ("profiler.save_traces_folder", ["--profiler.enable_profiling"]),
        ("profiler.save_memory_snapshot_folder", ["--profiler.enable_memory_snapshot"]),
        ("debug.save_config_file", []),
        ("export", []),
    ],
)
def test_a_destination_that_cannot_be_written_is_named(tmp_path, name, switch):
    with pytest.raises(InputError, match=r"is /dev/null.*: the folder cannot be written") as caught:
        check(tmp_path, f"--{name}", "/dev/null/a/b", *switch)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.save_tb_folder", "profiler.save_traces_folder"])
def test_folders_that_the_run_does_not_write_are_not_tried(tmp_path, name):
    check(tmp_path, f"--{name}", "/dev/null/a/b", "--metrics.no-enable_tensorboard")


@pytest.mark.parametrize("export", ["out", "out/model", ".", "out/checkpoint", "out/tb"])
def test_an_export_does_not_share_a_folder_with_the_run(tmp_path, export):
    with pytest.raises(InputError, match=r"exists already|choose another folder for export"):
        check(tmp_path, "--export", str(tmp_path / export))


def test_an_export_needs_checkpoints(tmp_path):
    with pytest.raises(InputError, match="export is set and reads the last checkpoint: enable checkpoint"):
        check(tmp_path, "--export", str(tmp_path / "hf"), "--checkpoint.no-enable")


@pytest.mark.parametrize(
    ("options", "free", "message"),
    [
        ([], 11, "checkpoint.folder is .*: the disk has 11 MiB of free room, and the files need 12 MiB: make room"),
        ([], 12, None),
        (["--ema.decay", "0.9"], 12, "the files need 16 MiB"),
        (["--checkpoint.last_save_model_only", "--checkpoint.interval", "5"], 4, None),
        (["--checkpoint.load_only"], 0, None),
        (["--checkpoint.no-enable"], 0, None),
        (["--checkpoint.load_only", "--export", "hf"], 1, "export is hf: .* need 2 MiB"),
    ],
)
def test_a_run_needs_room_for_its_checkpoint_and_its_export(tmp_path, monkeypatch, options, free, message):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free * 2**20))
    given = ["--config", "from_scratch", "--dump_folder", str(tmp_path), "--training.steps", "5", *options]
    if message is None:
        check_disks(load_config(given), 2**20)
        return
    with pytest.raises(InputError, match=message):
        check_disks(load_config(given), 2**20)
