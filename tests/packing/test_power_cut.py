"""A power cut at any step of ``append`` leaves the old or the new dataset. ``pack`` leaves no dataset or the whole."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exact_titan.dataset import Manifest
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import append, pack
from tests.packing.conftest import Documents, contents
from tests.support import ROOT

OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "shard_tokens": 300, "part_bytes": 1000}


class PowerCut(BaseException):
    """The end of the power."""


class Disk:
    """Counts the calls that order the writes of a disk, and cuts the power at one of them.

    Renames are on the disk at once. The content of a file is on the disk only after fsync: the cut empties all other
    files. This is the worst order that a file system may choose.

    Args:
        folder: the disk.
        cut: number of the call, from 0, before which the power is cut. None: never.
    """

    def __init__(self, folder: Path, cut: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._cut = folder, cut
        self.calls = 0
        self._synced = {self._key(file) for file in self._files()}
        fsync, rename = os.fsync, os.replace

        def counted_fsync(descriptor: int) -> None:
            self._count()
            fsync(descriptor)
            self._synced.add(self._key(Path(f"/proc/self/fd/{descriptor}")))

        def counted(source: str | Path, target: str | Path, **_: object) -> None:
            self._count()
            rename(source, target)

        monkeypatch.setattr(os, "fsync", counted_fsync)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, counted)

    def _count(self) -> None:
        if self.calls == self._cut:
            raise PowerCut
        self.calls += 1

    def lose(self) -> None:
        """Empty the files whose content is not on the disk."""
        for file in self._files():
            if self._key(file) not in self._synced:
                file.write_bytes(b"")

    def _files(self) -> list[Path]:
        return [file for file in self._folder.rglob("*") if file.is_file()]

    @staticmethod
    def _key(file: Path) -> tuple[int, int, int]:
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns


def number_of_calls(folder: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        disk = Disk(folder, None, patch)
        work()
    return disk.calls


def cut_off(folder: Path, cut: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(folder, cut, patch)
        with pytest.raises(PowerCut):
            work()
    disk.lose()


@pytest.fixture
def sources(documents: Documents) -> list[Path]:
    """Two parts of 20 short documents each."""
    return [documents.write(name, files=1, documents=20, longest=40) for name in "ab"]


def pack_into(out: Path, sources: list[Path]) -> None:
    pack(sources, tokenizer=out.parent / "tokenizer.json", out=out, **OPTIONS)


@pytest.mark.slow
def test_append_leaves_the_old_or_the_new_dataset(
    documents: Documents, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, old, new = (documents.folder / name for name in ("out", "old", "new"))
    pack_into(old, [documents.write("c", files=1, documents=20, longest=40)])

    def appended() -> None:
        append(out, sources, shard_tokens=300, part_bytes=1000)

    shutil.copytree(old, out)
    calls = number_of_calls(documents.folder, appended, monkeypatch)
    out.rename(new)
    assert calls > 30
    ends = []
    for cut in range(calls):
        shutil.copytree(old, out)
        cut_off(documents.folder, cut, appended, monkeypatch)
        assert list(verify(out))
        ends.append(Manifest.read(out).fingerprint)
        if ends[-1] == Manifest.read(new).fingerprint:
            with pytest.raises(InputError, match="out holds"):
                appended()
        elif cut % 4 == 0:
            appended()
        if cut % 4 == 0 or ends[-1] == Manifest.read(new).fingerprint:
            assert contents(out) == contents(new)
            assert not list(documents.folder.glob(".out*"))
        shutil.rmtree(out)
        shutil.rmtree(documents.folder / ".out.partial", ignore_errors=True)
    first_new = ends.index(Manifest.read(new).fingerprint)
    assert set(ends[:first_new]) == {Manifest.read(old).fingerprint}
    assert set(ends[first_new:]) == {Manifest.read(new).fingerprint}


@pytest.mark.slow
def test_pack_leaves_no_dataset_or_the_whole_dataset(
    documents: Documents, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = documents.folder / "out", documents.folder / "whole"
    calls = number_of_calls(documents.folder, lambda: pack_into(whole, sources), monkeypatch)
    assert calls > 30
    for cut in range(0, calls, 2):
        cut_off(documents.folder, cut, lambda: pack_into(out, sources), monkeypatch)
        if out.exists():
            assert contents(out) == contents(whole)
            with pytest.raises(InputError, match="out exists"):
                pack_into(out, sources)
        else:
            pack_into(out, sources)
        assert contents(out) == contents(whole)
        assert not list(documents.folder.glob(".out*"))
        shutil.rmtree(out)


KILLED = """
import os, shutil, sys
from pathlib import Path
from tests.packing.test_power_cut import pack_into
shutil.rmtree = lambda folder, **_: os._exit(137) if folder.name == ".out.partial" else None
pack_into(Path(sys.argv[1]), [Path(source) for source in sys.argv[2:]])
"""


@pytest.mark.slow
def test_the_next_start_removes_what_a_kill_left_after_the_last_rename(
    documents: Documents, sources: list[Path]
) -> None:
    command = [sys.executable, "-c", KILLED, str(documents.folder / "out"), *map(str, sources)]
    assert subprocess.run(command, cwd=ROOT).returncode == 137
    assert list(verify(documents.folder / "out"))
    assert list(documents.folder.glob(".out.partial"))
    with pytest.raises(InputError, match="out exists"):
        pack_into(documents.folder / "out", sources)
    assert not list(documents.folder.glob(".out*"))
