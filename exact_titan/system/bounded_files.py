"""Reads small files that somebody else may have written: no pipe or device that never ends, and bounded in size."""

import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file for reading. The call does not open a pipe, and therefore never waits for a writer.

    Raises:
        ValueError: if the file is a pipe, a device or a socket. The message is one line without the name of the file.
        OSError: if the file cannot be opened.
    """
    kind = file.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("it is a pipe or a device, and not a file")
    return file.open("rb")


def read_bounded(file: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Raises:
        ValueError: as :func:`open_regular`, and if the file is larger.
        OSError: if the file cannot be read.
    """
    with open_regular(file) as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data
