"""Bounds on the memory that reading a source needs. The bounds do not depend on the source.

A small file may expand to many GiB, and a single line may have no end. No document of a real corpus reaches a bound: a
document of 256 MiB has about 64 million tokens.
"""

from exact_titan.errors import InputError

DOCUMENT_BYTES = 2**28
"""Maximum size of a document, and of a line, an object or a cell that holds a document."""

CSV_ROW = 2**27
"""Maximum number of characters of a CSV row. Python's CSV parser needs 4 bytes for a character."""

ROWS_BYTES = 2**26
"""Maximum size of the rows of a table that are read at once. A single row may be larger."""

VALUES = 2**24
"""Maximum number of JSON values of a document, or of cells of a row. A value needs about 64 bytes of memory."""

WINDOW_BYTES = 2**31
"""Maximum window of a compressed file (zstd ``--long=31``), and of the dictionary of an ``.xz`` file."""

EXPANSION = 10_000
EXPANDED_BYTES = 2**30
"""A file may not expand to more than this size and also to more than :data:`EXPANSION` times its own size."""

PIPE_SECONDS = 20
"""Time to wait for the first byte of a named pipe that no program writes to."""


def too_large(where: str, what: str, size: int | None = None, most: int | None = None) -> InputError:
    """Return the error for a document that exceeds :data:`DOCUMENT_BYTES`.

    Args:
        where: the file and the line or row.
        what: the name of the thing that is too large, such as ``the line``.
        size: its size in bytes. None: the end was not read.
        most: the maximum. Default: :data:`DOCUMENT_BYTES`.
    """
    most = most or DOCUMENT_BYTES
    has = f"{what} has more than" if size is None else f"{what} has {size:,} bytes, more than"
    return InputError(f"{where}: {has} {most:,} bytes ({most / 2**20:g} MiB): divide the document, or remove it")


def too_many_values(where: str) -> InputError:
    """Return the error for a document that exceeds :data:`VALUES`."""
    return InputError(f"{where}: more than {VALUES:,} values: keep only the text, or divide the document")


class ExpansionError(Exception):
    """A file expands far beyond its size."""


def check_expansion(expanded: int, size: int) -> None:
    """Check the expanded size of ``size`` bytes of a file.

    Raises:
        ExpansionError: if the expanded size exceeds both bounds.
    """
    if expanded > EXPANDED_BYTES and expanded > EXPANSION * size:
        raise ExpansionError(
            f"{size:,} bytes expand to {expanded:,} bytes or more. The most is {EXPANSION:,} times the size"
        )
