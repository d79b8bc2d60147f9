"""The work folder ``.NAME.partial`` next to the dataset ``NAME``. A later command resumes from its finished parts.

::

    parts/KEY/    a finished part (:mod:`exact_titan.packing.part_result`); KEY.… is an unfinished part
    tallies/      counts of each task, for the progress
    begun/        parts in work by the tasks of a cluster, with the path of the task's log
    errors/       error message of each part that failed on a cluster
    runs/         jobs, logs and scripts of the executors
    dataset/      the dataset until it is complete
    slurm-job     number of the Slurm job that packs the parts
    published     fingerprint of the dataset that is about to be complete
    lock          lock of the packing process (:mod:`exact_titan.system.folder_lock`)
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.packing.part_result import RESULT
from exact_titan.system.atomic_files import publish, write_atomically
from exact_titan.system.file_errors import file_name, input_error, why
from exact_titan.system.folder_lock import HeldError, locked


class WorkFolder:
    """The work folder and its subfolders.

    Args:
        path: the folder.

    Attributes:
        part_count: number of the corpus's parts. 0 until the corpus is divided.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts, self.tallies, self.begun, self.errors, self.runs = (
            path / name for name in ("parts", "tallies", "begun", "errors", "runs")
        )
        self.dataset, self._published = path / "dataset", path / "published"
        self.part_count = 0

    def finished(self) -> int:
        """Return the number of finished parts."""
        return sum(map(_is_finished, self.parts.iterdir())) if self.parts.is_dir() else 0

    def begin(self) -> None:
        """Make the missing subfolders, and remove unfinished work of earlier commands. No task may use the folder."""
        for folder in (self.tallies, self.begun, self.errors, self.runs, self.dataset):
            shutil.rmtree(folder, ignore_errors=True)
        self._published.unlink(missing_ok=True)
        for folder in (self.parts, self.tallies, self.begun, self.errors, self.runs):
            folder.mkdir(exist_ok=True)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Remove the folders of unfinished parts. No task may use the folder."""
        for folder in self.parts.iterdir():
            if not _is_finished(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def announce(self, fingerprint: str) -> None:
        """Record the fingerprint of the dataset that is about to be complete."""
        write_atomically(self._published, fingerprint)

    def publish(self, out: Path) -> None:
        """Write the dataset through to the disk, and rename it to ``out``."""
        publish(self.dataset, out)

    def is_left_over(self, out: Path) -> bool:
        """Return whether the work is complete: the dataset ``out`` has the announced fingerprint."""
        try:
            return self._published.read_text(encoding="utf-8") == Manifest.read(out).fingerprint
        except (OSError, InputError):
            return False

    def error(self) -> str | None:
        """Return the error message of the first part that failed, or None."""
        files = sorted(self.errors.iterdir())
        return files[0].read_text(encoding="utf-8") if files else None


def _is_finished(folder: Path) -> bool:
    """Return whether the folder is a finished part under its final name. A kill may leave a part under another name."""
    return "." not in folder.name and (folder / RESULT).is_file()


@contextmanager
def work_folder(out: Path) -> Iterator[WorkFolder]:
    """Lock the work folder of ``out`` for this process.

    The folder is removed when the work is complete. After an error, the folder is kept if a part is finished. An
    exception is a corpus of one part: its folder is removed, because one part is packed again quickly.

    Raises:
        InputError: if another process uses the folder, the folder cannot be written, or the work fails. If the folder
            is kept, the error gives the number of finished parts.
    """
    missing = [parent for parent in out.parents if not parent.exists()]
    work = WorkFolder(_path(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work.path.mkdir(exist_ok=True)
        with _locked(work, out):
            try:
                yield work
            except BaseException:
                # One part is packed again quickly.
                if work.part_count == 1 or not work.finished():
                    shutil.rmtree(work.path, ignore_errors=True)
                raise
            shutil.rmtree(work.path, ignore_errors=True)
    except HeldError:
        raise
    except BaseException as error:
        kept = work.finished()
        if not kept:
            for parent in missing:
                with suppress(OSError):  # another program may use the folder now
                    parent.rmdir()
        if isinstance(error, OSError):
            error = _input_error(error, out, work)
        if isinstance(error, InputError) and kept:
            raise InputError(
                f"{error} ({kept} parts are finished: the same command resumes from these parts)"
            ) from error
        raise error


def _input_error(error: OSError, out: Path, work: WorkFolder) -> BaseException:
    """Return the error as one line: of ``--out``, or of another file, such as a source."""
    name = file_name(error)
    file = out if name is None else Path(name)
    if any(file.is_relative_to(folder) for folder in (work.path, out)) or out.is_relative_to(file):
        return InputError(f"--out {out} cannot be written: {why(error)}: choose another folder, or make room")
    return input_error(error) or error


def remove_left_over(out: Path) -> None:
    """Remove the work folder of the dataset ``out``, if a kill after the last step of the work left the folder."""
    work = WorkFolder(_path(out))
    with suppress(HeldError, OSError):
        if work.is_left_over(out):
            with _locked(work, out):
                shutil.rmtree(work.path, ignore_errors=True)


def _path(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def _locked(work: WorkFolder, out: Path) -> AbstractContextManager[None]:
    held = f"--out {out}: another process is packing it"
    return locked(work.path / "lock", held, "wait for that process, or give another folder")
