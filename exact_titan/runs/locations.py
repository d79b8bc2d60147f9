"""Where the checkpoints of a run are, and which run saved a checkpoint.

By default the checkpoints are in ``<dump_folder>/checkpoint``. ``checkpoint.folder`` may name a nested folder, or a
folder on another disk. Such a run writes two small files: one in its own folder with the path of the checkpoints, and
one next to its checkpoints with the path of the run.
"""

import json
import os
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_folders import find_checkpoints, is_checkpoint_name
from exact_titan.runs.checkpoint_manifest import MANIFEST
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.json_files import read_json

MODEL_FOLDER = "model"
"""The folder in the run's folder that holds config.json and the tokenizer. An export needs only this folder and the
weights."""

DEFAULT_FOLDER = "checkpoint"
"""Folder of the checkpoints inside a run's folder, the default of ``checkpoint.folder``."""

CHECKPOINTS_FILE = "checkpoints.json"
"""The file in a run's folder. Content: ``{"folder": path}``."""

RUN_FILE = "run_folder.json"
"""The file next to a run's checkpoints. Content: ``{"folder": path}``."""


def checkpoints_of(run: Path) -> Path:
    """Return the folder of the checkpoints of a run.

    Raises:
        InputError: if the run's file is damaged. The message names the file.
    """
    return _read(run / CHECKPOINTS_FILE) or run / DEFAULT_FOLDER


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one checkpoint, complete or not, and not the output folder of a run."""
    if any(os.path.lexists(folder / name) for name in (MANIFEST, DCP_METADATA)):
        return True
    is_of_run = any(os.path.lexists(folder / name) for name in (DEFAULT_FOLDER, CHECKPOINTS_FILE))
    return is_checkpoint_name(folder.name) and folder.is_dir() and not is_of_run


def run_of(checkpoint: Path) -> Path:
    """Return the output folder of the run that saved a checkpoint.

    Without a file next to the checkpoint, the run is the folder above the folder of the checkpoints.

    Raises:
        InputError: if the file next to the checkpoint is damaged, or names a folder that does not exist.
    """
    file = checkpoint.parent / RUN_FILE
    run = _read(file)
    if run is None:
        return checkpoint.parent.parent
    if not run.is_dir():
        raise InputError(f"{file}: the run's folder {run} does not exist: correct the path in the file")
    return run


def check_locations(run: Path, checkpoints: Path) -> None:
    """Refuse a checkpoint folder of another run, and a new checkpoint folder for a run that has checkpoints.

    Raises:
        InputError: naming ``checkpoint.folder`` and the other folder.
    """
    owner = _read(checkpoints / RUN_FILE)
    if owner is not None and owner.is_dir() and not _same(owner, run):
        raise InputError(
            f"checkpoint.folder is {checkpoints}, but this folder has the checkpoints of the run {owner}: choose "
            f"another folder; if {run} continues that run, write its path into {checkpoints / RUN_FILE}"
        )
    before = checkpoints_of(run)
    if (
        not _same(before, checkpoints)
        and find_checkpoints(before).has_steps
        and not find_checkpoints(checkpoints).has_steps
    ):
        raise InputError(
            f"checkpoint.folder is {checkpoints}, but the checkpoints of this run are in {before}: set "
            f"checkpoint.folder to that folder, or start a new run in another dump_folder"
        )


def record_locations(run: Path, checkpoints: Path) -> None:
    """Write the two files of the run, or remove them if the checkpoints are in the default folder."""
    if _same(checkpoints, run / DEFAULT_FOLDER):
        (run / CHECKPOINTS_FILE).unlink(missing_ok=True)
        (checkpoints / RUN_FILE).unlink(missing_ok=True)
        return
    _write(run / CHECKPOINTS_FILE, checkpoints, base=run)
    _write(checkpoints / RUN_FILE, run, base=run)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _read(file: Path) -> Path | None:
    """Return the folder in one of the files. None if there is no such file."""
    try:
        folder = Path(os.path.normpath(file.parent.resolve() / read_json(file)["folder"]))
        if "\0" in str(folder):
            raise ValueError("the path has a null character")
        return folder
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{file} is damaged ({error}): write {{"folder": PATH}} into it') from None


def _write(file: Path, folder: Path, *, base: Path) -> None:
    """Write ``folder`` into ``file``. Inside ``base`` the path is relative, so that the run may be moved."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder, here, base = folder.resolve(), file.parent.resolve(), base.resolve()
    inside = folder.is_relative_to(base) and here.is_relative_to(base)
    path = os.path.relpath(folder, here) if inside else str(folder)
    write_atomically(file, json.dumps({"folder": path}) + "\n")
