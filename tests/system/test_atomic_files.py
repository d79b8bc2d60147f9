"""Files appear whole or not at all, and abandoned unfinished files go."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_titan.system.atomic_files import partial_of, publish, write_atomically

HOST = socket.gethostname().replace(".", "-")


@pytest.fixture(scope="module")
def ended_process() -> int:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "1é")
    write_atomically(tmp_path / "a.json", b"2")
    assert (tmp_path / "a.json").read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write_atomically(tmp_path / "a.json", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = partial_of(tmp_path / "out")
    (partial / "inner").mkdir(parents=True)
    (partial / "a").write_text("1")
    (partial / "inner/b").write_text("2")
    written: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        written.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    publish(partial, tmp_path / "out")
    assert written[-2:] == [partial.name, tmp_path.name]
    assert sorted(written[:-2]) == ["a", "b", "inner"]
    assert (tmp_path / "out/inner/b").read_text() == "2"


def test_abandoned_partials_go(tmp_path: Path, ended_process: int) -> None:
    old = time.time() - 2 * 24 * 3600
    for name in (
        f".out.{HOST}.{ended_process}",
        f".out.{HOST}.{os.getppid()}",
        ".out.other.1",
        ".out.old.1",
        f".out2.{HOST}.{ended_process}",
        ".out.txt",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    os.utime(tmp_path / ".out.old.1", (old, old))
    partial = partial_of(tmp_path / "out")
    assert not partial.exists()
    assert partial.parent == tmp_path
    kept = {f".out.{HOST}.{os.getppid()}", ".out.other.1", f".out2.{HOST}.{ended_process}", ".out.txt"}
    assert set(os.listdir(tmp_path)) == kept


def test_the_name_of_a_partial_fits(tmp_path: Path) -> None:
    partial = partial_of(tmp_path / ("é" * 127))
    partial.touch()
    publish(partial, tmp_path / ("é" * 127))
    assert os.listdir(tmp_path) == ["é" * 127]
