"""Complete and incomplete checkpoints. tests/titan/test_checkpoint.py tests how runs use them."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_errors import reading_checkpoint
from exact_titan.runs.checkpoint_folders import find_checkpoints
from exact_titan.runs.checkpoint_manifest import why_incomplete, write_manifest
from exact_titan.runs.checkpoint_verdict import Kind
from exact_titan.runs.run_folder import find_checkpoint


def save(run: Path, step: int) -> Path:
    """Save a real distributed checkpoint of one process."""
    folder = run / "checkpoint" / f"step-{step}"
    dcp.save({"weight": torch.arange(1000.0), "step": step}, checkpoint_id=folder, no_dist=True)
    write_manifest(folder)
    return folder


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_every_file_is_listed_with_its_size(tmp_path):
    folder = save(tmp_path, 3)
    assert why_incomplete(folder) is None
    files = json.loads((folder / "files.json").read_text())["files"]
    assert files == {name: (folder / name).stat().st_size for name in (".metadata", "__0_0.distcp")}


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "files.json"])
@pytest.mark.parametrize("how", [truncate, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_missing_or_truncated_file_makes_the_previous_checkpoint_the_last(tmp_path, name, how):
    previous, newest = save(tmp_path, 3), save(tmp_path, 10)
    assert find_checkpoint(tmp_path) == newest
    # A manifest without its last line break is complete.
    (newest / "files.json").write_text((newest / "files.json").read_text().rstrip())
    how(newest / name)
    skipped: list[str] = []
    assert find_checkpoint(tmp_path, on_skipped=skipped.append) == previous
    assert skipped == [f"{newest} is not complete and is skipped: {why_incomplete(newest)}"]
    assert name in why_incomplete(newest)
    for named in ({"path": tmp_path, "step": 10}, {"path": newest}):
        if (newest / ".metadata").exists() or "step" in named:
            with pytest.raises(InputError, match="complete checkpoint"):
                find_checkpoint(**named)


@pytest.mark.parametrize(
    "files", [[], {}, {".metadata": None}, {".metadata": "9"}, {".metadata": True}, {".metadata": {}}, 3]
)
def test_a_list_that_lists_no_sizes_is_damaged(tmp_path, files):
    folder = save(tmp_path, 3)
    (folder / "files.json").write_text(json.dumps({"files": files}))
    assert why_incomplete(folder) == "its files.json is damaged"


def test_the_error_about_damaged_bytes_is_one_line(tmp_path):
    folder = save(tmp_path, 3)
    file = folder / "__0_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert why_incomplete(folder) is None
    remedy = "copy it again, or resume from an earlier checkpoint with --checkpoint.load_step"
    message = rf"^{folder} cannot be read \(.*\): {remedy}$"
    with pytest.raises(InputError, match=message), reading_checkpoint(folder):
        dcp.load({"weight": torch.zeros(1000), "step": 0}, checkpoint_id=folder, no_dist=True)


def test_files_added_later_do_not_matter(tmp_path):
    folder = save(tmp_path, 3)
    (folder / "notes.txt").write_text("mine")
    assert why_incomplete(folder) is None


def test_a_file_that_the_save_has_truncated_gets_no_manifest(tmp_path):
    folder = save(tmp_path, 3)
    (folder / "files.json").unlink()
    truncate(folder / "__0_0.distcp")
    with pytest.raises(RuntimeError, match=r"__0_0\.distcp has \d+ bytes after the save, but needs \d+"):
        write_manifest(folder)
    assert not (folder / "files.json").exists()


def test_only_folders_named_step_and_a_number_are_checkpoints(tmp_path):
    save(tmp_path, 3).rename(tmp_path / "checkpoint" / "step-3-kept")
    found = find_checkpoints(tmp_path / "checkpoint")
    assert not found.has_steps
    assert [one.kind for one in found.refused] == [Kind.MISNAMED]
    save(tmp_path, 12)
    save(tmp_path, 4)
    assert list(find_checkpoints(tmp_path / "checkpoint").complete) == [4, 12]
