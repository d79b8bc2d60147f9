"""Pointers of Git LFS: small text files that a clone without Git LFS has instead of the large files."""

from pathlib import Path

from exact_titan.errors import InputError

_START = b"version https://git-lfs.github.com/spec/"
_LARGEST = 1024


def refuse_pointer(file: Path, shown: str) -> None:
    """Check that a regular file is not a pointer of Git LFS.

    Args:
        file: the file.
        shown: name of the file in messages.

    Raises:
        InputError: if the file is a pointer.
        OSError: if the file cannot be read.
    """
    if not file.is_file() or file.stat().st_size >= _LARGEST:
        return
    with file.open("rb") as stream:
        if stream.read(len(_START)) == _START:
            raise InputError(f"{shown} is a pointer of Git LFS, not the file: run `git lfs pull`")
