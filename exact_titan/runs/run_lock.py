"""The lock of a run's folder: two runs in one folder would overwrite each other's checkpoints."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs import LOGS_FOLDER
from exact_titan.runs.destinations import check_writable
from exact_titan.system import folder_lock
from exact_titan.system.folder_files import leads_outside

_LOCK = ".lock"


def lock_run(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run's folder. Make the folder. A folder that is still empty at the end is removed.

    Rank 0 holds the lock from the first change in the folder to the end of the export.

    Raises:
        InputError: if another process holds the lock, if the folder cannot be written, or if one of its files is a link
            to a file outside.
    """
    check_writable(folder, "dump_folder")
    _refuse_links(folder)
    return folder_lock.locked(folder / _LOCK, *_messages(folder), beats=True)


def check_no_run(folder: Path) -> None:
    """Raise the error of :func:`lock_run` if a run works in the folder. The folder stays as it is.

    Raises:
        InputError: as :func:`lock_run`.
    """
    folder_lock.check_free(folder / _LOCK, *_messages(folder))


def has_files(folder: Path) -> bool:
    """Return whether a run's folder exists and has files, apart from the lock."""
    return folder.is_dir() and any(one.name != _LOCK for one in folder.iterdir())


def _refuse_links(folder: Path) -> None:
    """Refuse links to files outside of the folder: the run would write these files. Links to folders stay.

    The folder may come from somebody else. The files of the run are directly in the folder, and in its logs.

    Raises:
        InputError: naming the link and its target.
    """
    for parent in (folder, folder / LOGS_FOLDER):
        if not parent.is_dir():
            continue
        for one in sorted(parent.iterdir()):
            if one.is_symlink() and not one.is_dir() and leads_outside(folder, one):
                raise InputError(
                    f"{one} is a link to {os.readlink(one)}, which is outside of the dump_folder: the run would write "
                    f"that file; put a copy of the file in the place of the link, or choose another dump_folder"
                )


def _messages(folder: Path) -> tuple[str, str]:
    return (
        f"dump_folder is {folder}: another start of a run works in this folder",
        f"wait for its end, stop it with `touch {folder / 'stop'}`, or give another --dump_folder",
    )
