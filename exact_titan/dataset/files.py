"""The files of a packed dataset lie in its folder."""

import os
import stat
from pathlib import Path

from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.errors import InputError
from exact_titan.system.folder_files import leads_outside


def check_size(file: Path, size: int) -> None:
    """Check that a shard exists, lies in its folder, and has its size in the manifest, in bytes.

    Raises:
        InputError: in the cases of :func:`check_file`; also if the shard has another size.
    """
    found = check_file(file, what="shard ")
    if found != size:
        raise InputError(
            f"shard {file} is cut short or changed: it has {found} bytes, the manifest says {size}: {AGAIN}"
        )


def check_file(file: Path, *, what: str = "") -> int:
    """Check that a file exists and lies in its folder. Return its size in bytes.

    Args:
        file: the file.
        what: the kind of the file with a space, for messages.

    Raises:
        InputError: if the file is missing, is no regular file, cannot be looked at, or is a link that leads out of its
            folder (:mod:`exact_titan.system.folder_files`). Such a link could show any file of the reader's machine as
            a part of the dataset.
    """
    # One lstat a file: a dataset may have many thousands of shards on a network file system.
    try:
        found = file.lstat()
        if stat.S_ISLNK(found.st_mode):
            if leads_outside(file.parent, file):
                raise InputError(
                    f"{what}{file} is a link out of its folder, to {os.path.realpath(file)}: copy the dataset with "
                    "`cp -rL`, which copies the files that links lead to"
                )
            found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what}{file} is missing: {AGAIN}") from None
    except OSError as error:
        raise InputError(f"{what}{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{what}{file} is not a file: {AGAIN}")
    return found.st_size
