"""Saves and removals on a disk that fails at random. No error of a rename or a removal ends the run."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import IO

import pytest

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_folders import REMOVED, find_checkpoints
from exact_titan.runs.checkpoint_verification import check_contents
from tests.titan.test_checkpoint import checkpoints  # noqa: F401

_CAUSES = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EBUSY, errno.EROFS, errno.EMFILE, errno.ETIMEDOUT]


class Faults:
    """Lets renames, removals and listings of the folders of checkpoints fail with probability ``share``."""

    def __init__(self, monkeypatch, seed: int, folder: Path) -> None:
        self.random, self.share, self.raised, self._folder = random.Random(seed), 0.0, 0, folder
        for owner, name in ((Path, "rename"), (shutil, "rmtree"), (os, "scandir"), (Path, "touch"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, function):
        def failing(path, *arguments, **options):
            if self._is_of_folders(path) and self.random.random() < self.share:
                self.raised += 1
                number = self.random.choice(_CAUSES)
                raise OSError(number, os.strerror(number), str(path))
            return function(path, *arguments, **options)

        return failing

    def _is_of_folders(self, path) -> bool:
        if isinstance(path, int):  # a descriptor of rmtree
            return False
        path = Path(path)
        return path == self._folder or path.parent == self._folder or path.name == "validated"


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_no_fault_of_the_disk_costs_a_checkpoint_or_the_run(checkpoints, tmp_path, monkeypatch, mode):  # noqa: F811
    """The steps go forward, and back as after a resume from an earlier step."""
    folder = tmp_path / "checkpoint"
    manager = checkpoints(keep_latest_k=2, async_mode=mode)
    faults, saved = Faults(monkeypatch, 3, folder), set()
    step = 0
    for _ in range(30):
        step = max(1, step + faults.random.choice([1, 1, 1, -2]))
        faults.share = 0.4
        manager.save(step)
        manager.mark_validated(step)
        manager.maybe_wait_for_saving()
        faults.share = 0.0
        saved.add(step)
        found = find_checkpoints(folder)
        assert step in found.complete
        assert not found.refused
        assert len(found.complete) >= min(2, len(saved))
        for checkpoint in found.complete.values():
            check_contents(checkpoint)
    assert faults.raised > 20
    manager.save(step + 1)
    manager.save(step + 2)
    manager.maybe_wait_for_saving()
    manager.close()
    # A healthy disk ends the disorder, but what could not be removed once stays for the next start.
    again = checkpoints(keep_latest_k=2)
    for later in (step + 100, step + 101, step + 102):
        again.save(later)
    again.close()
    assert sorted(one.name for one in folder.iterdir()) == [f"step-{step + 101}", f"step-{step + 102}"]


def test_a_second_save_of_a_step_replaces_the_first_only_when_it_is_complete(checkpoints, tmp_path):  # noqa: F811
    manager = checkpoints(keep_latest_k=2)
    for step in (2, 4):
        manager.save(step)
    first = (tmp_path / "checkpoint/step-4/files.json").stat().st_ino
    manager.before_save = lambda: check_contents(tmp_path / "checkpoint/step-4")

    class Killed(Exception):
        pass

    def killed(folder: Path) -> None:
        raise Killed

    complete, manager._complete = manager._complete, killed
    with pytest.raises(Killed):
        manager.save(4)
    manager._complete = complete
    # The kill was after the last file of the save and before the rename.
    assert (tmp_path / "checkpoint/.unfinished-step-4/files.json").is_file()
    assert (tmp_path / "checkpoint/step-4/files.json").stat().st_ino == first
    manager.load()
    assert (tmp_path / "checkpoint/step-4/files.json").stat().st_ino != first
    manager.save(5)
    manager.close()
    assert sorted(one.name for one in (tmp_path / "checkpoint").iterdir()) == ["step-4", "step-5"]


def test_only_incomplete_checkpoints_before_a_complete_one_are_removed(checkpoints, tmp_path):  # noqa: F811
    manager, folder = checkpoints(keep_latest_k=2), tmp_path / "checkpoint"
    manager.save(5)
    for name in ("step-3", "step-100", ".unfinished-step-100", "step-4"):
        shutil.copytree(folder / "step-5", folder / name)
        (folder / name / "files.json").unlink()
    (folder / "step-4/files.json").symlink_to("files.json")
    linked = shutil.copytree(folder / "step-3", tmp_path / "elsewhere")
    (folder / "step-2").symlink_to(linked)
    manager.save(6)
    manager.close()
    assert sorted(one.name for one in folder.iterdir()) == ["step-100", "step-5", "step-6"]
    assert len(list(linked.iterdir())) == 2


def test_a_checkpoint_that_cannot_be_read_stays(checkpoints, tmp_path, monkeypatch):  # noqa: F811
    manager, folder = checkpoints(keep_latest_k=2), tmp_path / "checkpoint"
    manager.save(1)
    open_ = Path.open

    def refuse(path: Path, *how: object, **more: object) -> IO[bytes]:
        if path.parent.name == "step-1":
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"step-1/files.json: Permission denied"):
        manager.load(step=1)
    for step in (2, 3, 4):
        manager.save(step)
    manager.close()
    assert sorted(one.name for one in folder.iterdir()) == ["step-1", "step-3", "step-4"]
    assert not list(folder.glob(f"{REMOVED}*"))


def test_the_files_of_every_failed_save_of_a_step_are_removed(checkpoints, tmp_path):  # noqa: F811
    manager, folder = checkpoints(keep_latest_k=2), tmp_path / "checkpoint"
    for _ in range(2):
        manager.save(1)
        (folder / "step-1/files.json").unlink()
        (folder / "step-1").rename(folder / ".unfinished-step-1")
        manager._removal.failed(1)
    manager.close()
    assert list(folder.iterdir()) == []


def test_start_over_keeps_the_incomplete_checkpoints(checkpoints, tmp_path):  # noqa: F811
    manager, folder = checkpoints(keep_latest_k=2), tmp_path / "checkpoint"
    manager.save(3)
    (folder / "step-3/files.json").unlink()
    again = checkpoints(keep_latest_k=2, start_over=True)
    assert not again.load()
    for step in (1, 2, 3, 4):
        again.save(step)
    again.close()
    assert sorted(one.name for one in folder.iterdir()) == ["set-aside-step-3", "step-3", "step-4"]
    assert len(list((folder / "set-aside-step-3").iterdir())) == 2
    assert checkpoints(start_over=True).load()
