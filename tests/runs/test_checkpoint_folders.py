"""Which folders of a run are checkpoints, and what a search says if none can be used."""

import json
import os
import shutil
from pathlib import Path
from typing import IO

import pytest

from exact_titan.errors import InputError
from exact_titan.runs import checkpoint_folders, checkpoint_manifest
from exact_titan.runs.checkpoint_folders import find_checkpoints, publish, remains, set_aside, unfinished_of
from exact_titan.runs.checkpoint_verdict import Kind, Verdict
from exact_titan.runs.checkpoint_verification import verify_checkpoints
from exact_titan.runs.run_folder import find_checkpoint
from tests.runs.test_checkpoint_manifest import save

_ADVICE = ("remove", "delete", "damaged")


def unreadable(monkeypatch, *files: Path) -> None:
    """Let the system refuse to open the files. Root may read every file, so permissions do not test this."""
    open_ = Path.open

    def refuse(path: Path, *how: object, **more: object) -> IO[bytes]:
        if path in files:
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)


def add_a_byte(folder: Path) -> None:
    with (folder / ".metadata").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "files.json").unlink(), "it has no files.json"),
        (add_a_byte, r"its .metadata has [\d,]+ bytes, not"),
        (lambda folder: (folder / "files.json").write_text("[" * 100_000), "its files.json is damaged"),
        (lambda folder: (folder / "files.json").write_text('{"files": {"../x": 1}}'), "its files.json is damaged"),
        (lambda folder: shutil.move(folder, folder.parent / "moved"), None),
    ],
)
def test_a_search_with_no_complete_checkpoint_gives_the_reasons(tmp_path, change, reason):
    folders = [save(tmp_path, step) for step in (2, 4)]
    for folder in folders:
        change(folder)
    if reason is None:
        shutil.rmtree(tmp_path / "checkpoint")
        reason, steps = "the run has not saved one yet", []
    else:
        steps = ["step-4", "step-2"]
    with pytest.raises(InputError, match=reason) as raised:
        find_checkpoint(tmp_path)
    text = str(raised.value)
    assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)
    assert not any(word in text for word in _ADVICE[:2])


def test_a_later_checkpoint_that_cannot_be_read_is_no_reason_to_take_an_earlier_one(tmp_path, monkeypatch):
    first, second, third = (save(tmp_path, step) for step in (1, 2, 3))
    unreadable(monkeypatch, third / "files.json", first / "files.json")
    found = find_checkpoints(tmp_path / "checkpoint")
    assert list(found.complete) == [2]
    assert [(one.folder, one.kind) for one in found.refused] == [(first, Kind.UNREADABLE), (third, Kind.UNREADABLE)]
    with pytest.raises(
        InputError, match=r"step-3 cannot be read \(.*Permission denied\): .* step 2 by its step$"
    ) as raised:
        find_checkpoint(tmp_path)
    assert not any(word in str(raised.value) for word in _ADVICE)
    assert find_checkpoint(tmp_path, step=2) == second
    with pytest.raises(InputError, match=r"step-1 cannot be read \(.*Permission denied\): repeat the command"):
        find_checkpoint(tmp_path, step=1)
    unreadable(monkeypatch, third / "files.json", second / "files.json")
    with pytest.raises(InputError, match=r"step-3 cannot be read"):
        find_checkpoint(tmp_path)


def test_a_folder_that_cannot_be_listed_has_not_no_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(folder: Path) -> None:
        raise OSError(116, "Stale file handle", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"checkpoint cannot be read \(Stale file handle\): repeat the command"):
        find_checkpoint(tmp_path)


def test_names_that_are_no_names_of_checkpoints(tmp_path):
    complete = save(tmp_path, 4)
    folder = complete.parent
    for name in ("step-04", "step-٤", "step-4-2", "step-", "set-aside-step-3", f"step-{'9' * 200}x"):
        shutil.copytree(complete, folder / name)
    (folder / "step-7").write_text("a file")
    (folder / "step-8").symlink_to("nowhere")
    (folder / "step-9").symlink_to("step-9")
    found = find_checkpoints(folder)
    assert found.complete == {4: complete}
    assert [one.folder for one in found.of_kind(Kind.INCOMPLETE)] == [folder / "step-8", folder / "step-9"]
    assert find_checkpoint(tmp_path) == complete


def test_a_checkpoint_whose_rename_was_interrupted_is_found(tmp_path):
    save(tmp_path, 2)
    older, folder = save(tmp_path, 4), tmp_path / "checkpoint"
    (older / "files.json").unlink()
    hidden = save(tmp_path, 5).rename(unfinished_of(older))
    interrupted = save(tmp_path, 6).rename(unfinished_of(folder / "step-6"))
    (interrupted / "files.json").unlink()
    assert unfinished_of(folder / "step-6").name == ".unfinished-step-6-2"
    assert find_checkpoints(folder).complete == {2: folder / "step-2", 4: hidden}
    assert find_checkpoints(folder).refused == ()
    assert find_checkpoint(tmp_path) == hidden
    assert remains(folder) == [interrupted]
    assert publish(hidden) == older
    assert find_checkpoints(folder).complete == {2: folder / "step-2", 4: older}
    (replaced,) = (one for one in remains(folder) if one != interrupted)
    assert (replaced / ".metadata").is_file()


def test_a_replaced_checkpoint_comes_back_if_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    older = save(tmp_path, 4)
    hidden = save(tmp_path, 5).rename(unfinished_of(older))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        publish(hidden)
    assert sorted(one.name for one in older.parent.iterdir()) == [".unfinished-step-4", "step-4"]


def test_set_aside_keeps_every_file(tmp_path):
    incomplete = save(tmp_path, 4)
    (incomplete / "files.json").unlink()
    shutil.copytree(incomplete, incomplete.with_name("set-aside-step-4"))
    content = {file.name: file.read_bytes() for file in incomplete.iterdir()}
    (aside,) = set_aside(incomplete.parent)
    assert aside.name == "set-aside-step-4-2"
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == content
    assert not find_checkpoints(incomplete.parent).has_steps


def test_manifests_of_earlier_versions_are_read(tmp_path):
    folder = save(tmp_path, 3)
    content = json.loads((folder / "files.json").read_text())
    assert set(content["sha256"]) == set(content["files"])
    (folder / "files.json").write_text(json.dumps({"files": content["files"]}))
    assert checkpoint_manifest.read_manifest(folder) == (content["files"], {})
    assert checkpoint_folders.find_checkpoints(folder.parent).complete == {3: folder}


@pytest.mark.parametrize(
    "name", ["step-04", "step-4.partial", ".step-4.Ab3xYz", "Step 4", "step_4", "step-4-2", "last"]
)
def test_checkpoints_under_other_names_are_not_no_checkpoints(tmp_path, name):
    complete = save(tmp_path, 4)
    folder = complete.parent
    other = complete.rename(folder / name)
    with pytest.raises(InputError, match=rf"may be checkpoints under another name \({name}\): rename them to step-N"):
        find_checkpoint(tmp_path)
    assert find_checkpoints(folder).refused == (Verdict(other, Kind.MISNAMED),)
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path) == folder / "step-2"
    assert f"{other} is not checked" in " ".join(line for is_good, line in verify_checkpoints(folder) if not is_good)


def test_folders_that_are_no_checkpoints(tmp_path):
    for name in (".unfinished-step-1", ".removed-step-2-3", "set-aside-step-4", "logs", "steps"):
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
    assert find_checkpoints(tmp_path / "checkpoint").refused == ()
    with pytest.raises(InputError, match="has not saved one yet"):
        find_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"or .*logs is neither the output folder of a run nor a checkpoint"):
        find_checkpoint(tmp_path / "checkpoint/logs")


def test_an_incomplete_checkpoint_that_is_named_itself(tmp_path):
    checkpoint = save(tmp_path, 4)
    (checkpoint / ".metadata").unlink()
    with pytest.raises(InputError, match=r"step-4 is not a complete checkpoint: its .metadata is missing"):
        find_checkpoint(checkpoint)
    (checkpoint / "files.json").unlink()
    with pytest.raises(InputError, match=r"step-4 is not a complete checkpoint: it has no files.json"):
        find_checkpoint(checkpoint)
