import json

import pytest

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_manifest import write_manifest
from exact_titan.runs.locations import (
    CHECKPOINTS_FILE,
    RUN_FILE,
    check_locations,
    checkpoints_of,
    record_locations,
    run_of,
)


def checkpoint(folder, step: int):
    """Make a folder that counts as a complete checkpoint."""
    made = folder / f"step-{step}"
    made.mkdir(parents=True)
    (made / "weights").write_text("weights")
    write_manifest(made)
    return made


@pytest.mark.parametrize("folder", ["checkpoint", "ckpt", "ckpt/a", "../disk/run1"])
def test_a_run_and_its_checkpoints_find_each_other(tmp_path, folder):
    run = tmp_path / "run"
    run.mkdir()
    saved = checkpoint(run / folder, 3)
    record_locations(run, run / folder)
    assert checkpoints_of(run).resolve() == (run / folder).resolve()
    assert run_of(saved).resolve() == run.resolve()


def test_a_run_with_checkpoints_inside_its_folder_may_be_moved(tmp_path):
    saved = checkpoint(tmp_path / "run/ckpt/a", 3)
    record_locations(tmp_path / "run", tmp_path / "run/ckpt/a")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert checkpoints_of(tmp_path / "moved") == tmp_path / "moved/ckpt/a"
    assert run_of(tmp_path / "moved/ckpt/a" / saved.name) == tmp_path / "moved"


def test_the_default_folder_needs_no_files(tmp_path):
    record_locations(tmp_path, tmp_path / "other")
    record_locations(tmp_path, tmp_path / "checkpoint")
    assert not (tmp_path / CHECKPOINTS_FILE).exists()
    assert checkpoints_of(tmp_path) == tmp_path / "checkpoint"


def test_checkpoints_of_another_run_are_refused(tmp_path):
    (tmp_path / "one").mkdir()
    record_locations(tmp_path / "one", tmp_path / "disk")
    check_locations(tmp_path / "one", tmp_path / "disk")
    with pytest.raises(InputError, match=r"folder is .*disk, but this folder has the checkpoints of the run"):
        check_locations(tmp_path / "two", tmp_path / "disk")


@pytest.mark.parametrize("before", ["checkpoint", "ckpt"])
def test_a_run_does_not_start_again_because_its_checkpoint_folder_has_changed(tmp_path, before):
    run = tmp_path / "run"
    checkpoint(run / before, 3)
    record_locations(run, run / before)
    with pytest.raises(InputError, match=rf"the checkpoints of this run are in .*{before}"):
        check_locations(run, run / "new")
    # Moved checkpoints are found at the new place.
    (run / before).rename(run / "new")
    check_locations(run, run / "new")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / RUN_FILE).write_text(content)
    (tmp_path / CHECKPOINTS_FILE).write_text(content)
    with pytest.raises(InputError, match=f"{RUN_FILE} is damaged"):
        run_of(tmp_path / "step-3")
    with pytest.raises(InputError, match=f"{CHECKPOINTS_FILE} is damaged"):
        checkpoints_of(tmp_path)


def test_a_run_that_is_gone_is_named(tmp_path):
    (tmp_path / RUN_FILE).write_text(json.dumps({"folder": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="gone does not exist: correct the path in the file"):
        run_of(tmp_path / "step-3")
