"""Folders that a command will write: tried before the work starts."""

import os
import shutil
import tempfile
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.system.file_errors import why


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be created or written. The function creates no folder.

    The function writes and removes a temporary file in the folder, or in the nearest existing folder above it. File
    permissions alone do not show a read-only disk.

    Args:
        folder: the folder, which need not exist.
        name: the option or argument that names the folder, for the message.

    Raises:
        InputError: naming the option, the folder and the cause.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        # JSON, TensorBoard and the tokenizers take no other names.
        raise InputError(f"{name} is {folder}: the name is not UTF-8: choose another name")
    try:
        nearest = _nearest(folder)
        if not nearest.is_dir():
            raise NotADirectoryError(0, f"{nearest} is not a folder")
        with tempfile.TemporaryFile(dir=nearest, prefix=".exact-titan-"):
            pass
    except OSError as error:
        raise InputError(
            f"{name} is {folder}: the folder cannot be written ({why(error)}): choose a folder on a writable disk"
        ) from None


def check_new(folder: Path, name: str) -> None:
    """Refuse a folder that exists, or that cannot be created.

    Raises:
        InputError: naming the folder.
    """
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already: choose another folder")
    check_writable(folder, name)


def check_room(folder: Path, needed: int, name: str) -> None:
    """Refuse a folder on a disk with too little room. A quota of the disk is not known here.

    Args:
        folder: the folder, which need not exist.
        needed: bytes that will be written at least.
        name: the option or argument that names the folder, for the message.

    Raises:
        InputError: naming the option, the folder and the numbers of bytes.
    """
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        raise InputError(
            f"{name} is {folder}: the disk has {free / 2**20:,.0f} MiB of free room, and the files need "
            f"{needed / 2**20:,.0f} MiB: make room, or choose a folder on another disk"
        )


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest existing folder above it."""
    nearest = folder.absolute()
    while not _exists(nearest):
        nearest = nearest.parent
    return nearest


def _exists(path: Path) -> bool:
    """Return whether there is a file, a folder or a link. Other errors are raised, such as a name that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
