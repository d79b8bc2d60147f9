"""An error of the operating system about a file of the user, as one line that names the file and the way out.

The rooms check what they can before the work, with messages that name the option. This module is for the rest: a file
that cannot be read, a folder without permission, a disk that becomes full. The entry points and the agreement of the
ranks use :func:`as_input_errors`.

Not every OSError is about a file. A refused connection between two ranks, or a broken pipe to a worker, has no file
name. Such an error stays an exception with its traceback.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from exact_titan.errors import InputError

_WAYS_OUT = {
    errno.EACCES: "change the permissions, or choose another path",
    errno.EPERM: "change the owner or the permissions, or choose another path",
    errno.EROFS: "choose a path on a disk that can be written",
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "a file stands where the path needs a folder: choose another path",
    errno.EISDIR: "a folder stands where a file belongs: choose another path",
    errno.EEXIST: "choose another path",
    errno.ENOTEMPTY: "choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the links form a loop: correct the links",
    errno.EBUSY: "wait for the program that uses the file, and repeat the command",
    errno.ETXTBSY: "wait for the program that uses the file, and repeat the command",
}
"""Ways out of errors that name a file."""

_WAYS_OUT_ALWAYS = {
    errno.ENOSPC: "make room on the disk, and repeat the command",
    errno.EDQUOT: "make room in the quota of the disk, and repeat the command",
    errno.EFBIG: "raise the limit of the size of a file (ulimit -f), or choose a file system with larger files",
    errno.EIO: "the disk has a fault: repeat the command, or choose another disk",
    errno.ESTALE: "the network disk has lost the file: repeat the command",
    errno.EMFILE: "raise the limit of open files (ulimit -n), and repeat the command",
    errno.ENFILE: "close other programs, or raise the limit of open files of the machine, and repeat the command",
}
"""Ways out of errors that only files cause. A write to an open file names no file in its error."""


def input_error(error: OSError) -> InputError | None:
    """Return the error as one line for the user. None: the error is not about a file."""
    number, name = error.errno, file_name(error)
    if number is None or (name is None and number not in _WAYS_OUT_ALWAYS):
        return None
    way_out = _WAYS_OUT_ALWAYS.get(number) or _WAYS_OUT.get(number, "repeat the command, or choose another path")
    where = "" if name is None else f"{name}: "
    return InputError(f"{where}{why(error)}: {way_out}")


def file_name(error: OSError) -> str | None:
    """Return the file of an error. The error of a rename or a link names the second file, the new file."""
    name = error.filename2 if error.filename2 is not None else error.filename
    # An error about a descriptor has the number of the descriptor as its name.
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else None


def why(error: OSError) -> str:
    """Return the cause of an error in a few words, on one line."""
    return " ".join((error.strerror or str(error)).split())


@contextlib.contextmanager
def as_input_errors() -> Iterator[None]:
    """Turn errors about files into :class:`InputError`.

    Raises:
        InputError: for an OSError about a file. Other exceptions stay as they are.
    """
    try:
        yield
    except OSError as error:
        if (found := input_error(error)) is None:
            raise
        raise found from error
    except RuntimeError as error:
        # Path.resolve of Python 3.11 and 3.12 raises this error for links in a loop.
        if not str(error).startswith("Symlink loop from "):
            raise
        raise InputError(f"{error}: {_WAYS_OUT[errno.ELOOP]}") from error


def check_readable(file: os.PathLike[str]) -> None:
    """Raise the error of the system about a file that cannot be opened. safetensors calls every such file missing.

    Raises:
        OSError: naming the file.
    """
    with open(file, "rb"):
        pass


@contextlib.contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in errors of a disk that have no file name: a write to an open file does not name its file."""
    try:
        yield
    except OSError as error:
        if error.errno in _WAYS_OUT_ALWAYS and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(file)) from error
        raise
