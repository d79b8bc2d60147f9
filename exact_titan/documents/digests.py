"""Names, sizes and digests of the files of a dataset's sources."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FileDigest:
    """Name, size in bytes and ``sha256`` (hex) of a file."""

    name: str
    bytes: int
    sha256: str


def digest_in_order(files: Sequence[FileDigest]) -> str:
    """Return the digest of the contents of the files in this order, sha256 in hex. The names do not matter.

    The digest of one file is the file's sha256. The digest of several files is the sha256 of their digests, one a line.
    """
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}\n" for file in files).encode()).hexdigest()


def digest_of_all(files: Sequence[FileDigest]) -> str:
    """Return the sha256 (hex) of the lines that ``sha256sum`` prints for the files, sorted by name."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(lines.encode()).hexdigest()
