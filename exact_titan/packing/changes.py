"""Refuse a part whose files have changed since the corpus was divided into parts.

The key of a part covers size and modification time of its files. A finished part therefore never has the content of
changed files, and a later command packs the changed files again.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from exact_titan.documents.listing import is_url
from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.errors import InputError
from exact_titan.packing.parts import Part, file_version

_WAY_OUT = "wait until no program writes the file, and run the same command again"


def check_unchanged(part: Part, opened: Mapping[int, Source | TokenFile]) -> None:
    """Check that the local files of a part are the files that were listed.

    Args:
        part: the part.
        opened: the opened sources, by index.

    Raises:
        InputError: if a file is gone, or has another size or modification time. The error names the file.
    """
    for file, shown, before in _files(part, opened):
        try:
            found = os.stat(file)
        except FileNotFoundError:
            raise InputError(f"{shown} is gone since packing began: {_WAY_OUT}") from None
        except OSError:
            continue  # the reader has read the file
        # The time of a pipe is the time of the last write.
        if stat.S_ISREG(found.st_mode) and file_version(found) != before:
            raise InputError(f"{shown} has changed since packing began: {_WAY_OUT}")


def _files(part: Part, opened: Mapping[int, Source | TokenFile]) -> Iterator[tuple[str | Path, str, str]]:
    """Yield path, name for messages and version of every local file of the part."""
    for piece in part.pieces:
        source = opened[piece.source]
        if isinstance(source, TokenFile):
            for file, version in zip(source.files, piece.versions, strict=True):
                yield file, str(file), version
        elif piece.file is not None and not is_url(source.path):
            yield source.location(piece.file), source.shown(piece.file), f"{piece.file.bytes} {piece.file.version}"
