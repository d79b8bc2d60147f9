"""Where packing keeps what is finished until the dataset is: ``.NAME.partial`` beside it; a later try goes on from it.

::

    parts/KEY/    a finished part (:mod:`exact_titan.packing.part`); KEY.… is one that is being made
    tallies/      what each task has done, for the progress
    errors/       what stopped a part
    runs/         plans, logs and scripts of the executors
    dataset/      the dataset while it is put together
    lock          held by the process that packs
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from exact_titan.errors import InputError
from exact_titan.packing.part import RESULT


class WorkFolder:
    """The folder, and its own ones.

    Args:
        path: where it is.

    Attributes:
        part_count: parts that the dataset takes, as far as that is known yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts, self.tallies, self.errors, self.runs = (
            path / name for name in ("parts", "tallies", "errors", "runs")
        )
        self.dataset = path / "dataset"
        self.part_count = 0

    def finished(self) -> int:
        """How many parts are finished."""
        return sum((folder / RESULT).is_file() for folder in self.parts.iterdir()) if self.parts.is_dir() else 0

    def begin(self) -> None:
        """Make what is missing, and remove what earlier tries left half-made. No task may be at work in it."""
        for folder in (self.tallies, self.errors, self.dataset):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.parts, self.tallies, self.errors, self.runs):
            folder.mkdir(exist_ok=True)
        for folder in self.parts.iterdir():
            if not (folder / RESULT).is_file():
                shutil.rmtree(folder, ignore_errors=True)

    def error(self) -> str | None:
        """What stopped the first of the parts that could not be packed."""
        files = sorted(self.errors.iterdir())
        return files[0].read_text(encoding="utf-8") if files else None


@contextmanager
def work_folder(out: Path) -> Iterator[WorkFolder]:
    """The work folder of ``out``, for this process alone. It goes when the work is done, or when nothing was finished.

    Raises:
        InputError: if another process works in it, it cannot be written, or the work fails; that says what is kept.
    """
    missing = [parent for parent in out.parents if not parent.exists()]
    work = WorkFolder(out.parent / f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work.path.mkdir(exist_ok=True)
        with _locked(work.path / "lock", out):
            yield work
        shutil.rmtree(work.path, ignore_errors=True)
    except _InUseError as error:
        raise InputError(str(error)) from None
    except BaseException as error:
        # One part alone is quickly made again.
        kept = work.finished() if work.part_count != 1 else 0
        if not kept:
            shutil.rmtree(work.path, ignore_errors=True)
            for parent in missing:
                if parent.exists():
                    parent.rmdir()
        if isinstance(error, OSError):
            error = InputError(f"--out {out} cannot be written: {error}")
        if isinstance(error, InputError) and kept:
            raise InputError(f"{error} ({kept} parts are finished: the same command goes on from there)") from error
        raise error


class _InUseError(Exception):
    pass


@contextmanager
def _locked(file: Path, out: Path) -> Iterator[None]:
    with file.open("a") as stream:
        if not _lock(stream):
            raise _InUseError(f"--out {out}: another process is packing it: wait for that, or give another folder")
        yield


def _lock(stream: IO) -> bool:
    try:
        # Not flock: processes that this one has started would hold that after its end.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks
    return True
