"""What is kept of the files that a dataset was made from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FileDigest:
    """A file's name, size, and ``sha256`` in hex."""

    name: str
    bytes: int
    sha256: str


def digest_of_all(files: Sequence[FileDigest]) -> str:
    """Hex digest over the files' names and digests, in the order of their names, as ``sha256sum`` prints them."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(lines.encode()).hexdigest()
