"""Helpers: write a corpus of several files, and pack the corpus in another process."""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm_ranks
from tests.support import word_tokenizer


class Documents:
    """Sources of random documents in a folder. The ids and lengths are known.

    Attributes:
        folder: the folder, with ``tokenizer.json``.
        ids: token ids of the documents of each source, in their order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: dict[str, list[list[int]]] = {}
        word_tokenizer(folder / "tokenizer.json", 300)

    def write(self, name: str, files: int, documents: int, longest: int, seed: int = 0) -> Path:
        """Write a source: a folder of ``files`` files with ``documents`` documents each."""
        draw = random.Random(f"{name} {seed}")
        folder = self.folder / name
        folder.mkdir()
        self.ids[name] = []
        for number in range(files):
            lines = []
            for _ in range(documents):
                ids = [draw.randrange(1, 300) for _ in range(draw.randrange(1, longest))]
                self.ids[name].append([*ids, 0])
                lines.append(json.dumps({"text": " ".join(map(str, ids))}) + "\n")
            (folder / f"{number:03d}.jsonl").write_text("".join(lines))
        return folder


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    """An empty folder for sources."""
    return Documents(tmp_path)


class Packing:
    """A running ``pack`` in a process of its own, with the methods of ``subprocess.Popen`` that the tests call."""

    def __init__(self, folder: Path, given: dict[str, object]) -> None:
        self._files = tempfile.TemporaryDirectory()
        out, err = (Path(self._files.name) / name for name in ("out", "err"))
        self._launch = warm_ranks.launch(0, "tests.packing.program", [json.dumps(given)], folder, out, err)
        (self.pid,) = self._launch.pids

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal. None: the process is running."""
        return None if self._launch.running() else self.returncode

    @property
    def returncode(self) -> int:
        """The exit code after the end of the process."""
        assert self._launch.codes is not None
        return self._launch.codes[0]

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end of the process. Return the exit code."""
        return self._launch.end(timeout)[0]

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end of the process. Return standard output and standard error."""
        self.wait(timeout)
        return self._launch.stdout, self._launch.stderr

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        self._launch.send_signal(signal.SIGKILL)


def packing(folder: Path, **given: object) -> Packing:
    """Start ``pack`` in a separate process in ``folder``. Small files also get separate processes."""
    return Packing(folder, given)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def finished(folder: Path) -> dict[int, Path]:
    """Return the shards of the finished parts, by inode. A shard keeps its inode when it is moved."""
    # A part in progress has a dot in its name, and its folder may vanish at any time.
    parts = [part for part in folder.glob(".out.partial/parts/*") if "." not in part.name]
    return {file.stat().st_ino: file for part in parts for file in part.glob("*.safetensors")}


@pytest.fixture
def pipe(documents: Documents) -> Iterator[Path]:
    """Two parts: the folder ``a``, and a pipe. The worker of the pipe waits for a writer."""
    documents.write("a", files=1, documents=60, longest=60)
    file = documents.folder / "pipe.jsonl"
    os.mkfifo(file)
    return file


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reader_of(pipe: Path) -> int:
    """Return the process that waits for a writer of the pipe, or 0. The writer is this process."""
    try:
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if any(os.readlink(file) == str(pipe) for file in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue  # the process has ended
    return 0


def kill_the_reader(pipe: Path, number: signal.Signals, documents: Documents) -> tuple[int, float]:
    """Kill the worker that reads the pipe when the other part is finished. Return its number and the time."""
    until(lambda: finished(documents.folder))
    found: list[int] = []
    until(lambda: found.append(reader_of(pipe)) or found[-1])
    os.kill(found[-1], number)
    return found[-1], time.monotonic()
