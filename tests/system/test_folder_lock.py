"""The lock of a folder: one process at a time, and no lock of a process that has ended."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.system import folder_lock, processes
from exact_titan.system.folder_lock import Holder, check_free, locked
from tests.support import ROOT

PROGRAM = """
import os, sys
from pathlib import Path
from exact_titan.system.folder_lock import locked

file, what = Path(sys.argv[1]), sys.argv[2]
with locked(file, "in use", "wait", inherited=what == "inherited"):
    if what == "alone" or os.fork() == 0:
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(file: Path, what: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and the process id of its child, if there is one."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(file), what],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=reading,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    try:
        yield process, int(process.stdout.readline())
    finally:
        os.close(writing)
        process.kill()
        process.wait()
        process.stdout.close()


def hold(file: Path):
    return locked(file, "in use", "wait")


def write_line(file: Path, **changes) -> Holder:
    """Write the line of a lock whose holder is this process, apart from the changes."""
    file.parent.mkdir(exist_ok=True)
    line = dataclasses.replace(Holder.this(beats=False), **changes)
    file.write_text(json.dumps(dataclasses.asdict(line)) + "\n")
    return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out/.lock"


@pytest.fixture(params=["kernel", "line"])
def decides(request, monkeypatch) -> str:
    """Who decides: the kernel's lock, or the line of the file, as on a file system without locks."""
    if request.param == "line":
        monkeypatch.setattr(folder_lock, "_flock", lambda lock: False)
        monkeypatch.setattr(folder_lock, "_SETTLE_SECONDS", 0.1)
    return request.param


def test_a_second_process_is_told_who_holds_the_lock(file, decides):
    with holder(file) as (process, _):
        for refuse in (hold, lambda file: contextlib.nullcontext(check_free(file, "in use", "wait"))):
            with pytest.raises(InputError) as refused, refuse(file):
                pass
            assert str(refused.value).startswith(f"in use (process {process.pid} on {os.uname().nodename}, since 20")
            assert str(refused.value).endswith(" UTC): wait")
        process.kill()
        process.wait()
        # The killed process has left its file. The file blocks nobody.
        assert file.exists()
        with hold(file):
            assert json.loads(file.read_bytes())["process"] == os.getpid()


def test_the_end_leaves_nothing(tmp_path, decides):
    with hold(tmp_path / "a/b/.lock"):
        assert (tmp_path / "a/b/.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a/b/.lock"):
        (tmp_path / "a/file").touch()
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["file"]
    check_free(tmp_path / "c/.lock", "in use", "wait")
    assert not (tmp_path / "c").exists()


def test_a_forked_child_does_not_keep_the_lock(file):
    with holder(file, "forks") as (process, child):
        process.kill()
        process.wait()
        assert processes.started(child) is not None
        with hold(file):
            pass


def test_an_inherited_lock_ends_with_the_last_child(file):
    with holder(file, "inherited") as (process, child):
        process.kill()
        process.wait()
        still = rf"process {process.pid} .*has ended; a process that it started still works"
        with pytest.raises(InputError, match=still), hold(file):
            pass
        os.kill(child, signal.SIGKILL)
        end = time.monotonic() + 5
        while processes.started(child) is not None and time.monotonic() < end:
            time.sleep(0.01)
        with hold(file):
            pass


@pytest.mark.parametrize("decides", ["line"], indirect=True)
def test_without_locks_of_the_kernel_the_process_decides(file, decides):
    line = write_line(file)
    with pytest.raises(InputError, match=f"process {os.getpid()}"), hold(file):
        pass
    write_line(file, started=line.started - 1)  # another process had the same id
    with hold(file):
        pass
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_line(file, process=ended.pid)
    with hold(file):
        pass
    write_line(file, machine="another")  # nothing shows that this process has ended
    with (
        pytest.raises(InputError, match=rf"UTC; if that process has ended, remove the lock {file}\): wait"),
        hold(file),
    ):
        pass


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"host": "a"}', "\0" * 20])
def test_an_incomplete_line_blocks_nobody(file, decides, damaged):
    file.parent.mkdir()
    file.write_text(damaged)
    with hold(file):
        pass


def test_one_of_many_gets_the_lock(file, decides):
    """The line decides among processes of other machines, too: every thread writes its own line."""
    over = time.monotonic() + 0.5

    def start(number: int) -> bool:
        try:
            with locked(file, "in use", "wait"):
                time.sleep(max(0.0, over - time.monotonic()))
                return True
        except InputError:
            return False

    with pytest.MonkeyPatch.context() as patch:
        numbers = iter(range(100))
        make = Holder.this
        patch.setattr(Holder, "this", lambda *, beats: dataclasses.replace(make(beats=beats), started=next(numbers)))
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(start, range(8))) == 1


def test_the_heartbeat_decides_about_another_machine(file, decides, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.05)
    elsewhere = {"machine": "another", "host": "node7", "beats": True}
    write_line(file, **elsewhere)
    with hold(file):
        pass
    write_line(file, **elsewhere)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(lambda: hold(file).__enter__())
        time.sleep(0.07)
        os.utime(file)
        with pytest.raises(InputError, match="on node7"):
            refused.result(5)


def test_a_hiccup_does_not_end_the_heartbeat(file, monkeypatch, caplog):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.02)
    utime, failures = os.utime, iter([OSError(5, "Input/output error")] * 3)

    def flaky(lock: int) -> None:
        if error := next(failures, None):
            raise error
        utime(lock)

    monkeypatch.setattr(folder_lock.os, "utime", flaky)
    with locked(file, "in use", "wait", beats=True):
        first, end = file.stat().st_mtime_ns, time.monotonic() + 5
        while file.stat().st_mtime_ns == first and time.monotonic() < end:
            time.sleep(0.01)
        assert file.stat().st_mtime_ns != first
    assert len([one for one in caplog.records if "cannot be touched" in one.getMessage()]) == 1


def test_no_file_behind_a_link_becomes_the_lock(file):
    file.parent.mkdir()
    mine = file.with_name("mine")
    mine.write_text("mine")
    file.symlink_to(mine)
    with pytest.raises(InputError, match="is a link, and no lock of exact_titan"), hold(file):
        pass
    assert mine.read_text() == "mine"
    assert file.is_symlink()


def test_a_pipe_is_no_lock(file):
    file.parent.mkdir()
    os.mkfifo(file)
    with pytest.raises(InputError, match="is a pipe or a device"), hold(file):
        pass
