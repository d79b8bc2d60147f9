"""The sizes that the pages of a parquet column declare.

A value of a column is not larger than its page, also if the page is a dictionary that many rows refer to. pyarrow does
not show the sizes. Source: github.com/apache/parquet-format, ``parquet.thrift``, in Thrift's compact protocol.
"""

from typing import BinaryIO

import pyarrow.parquet

_MOST_PAGES = 100_000
_DEEPEST = 16
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3
_INTEGERS = (3, 4, 5, 6)
_DOUBLE, _BINARY, _LISTS, _STRUCT = 7, 8, (9, 10), 12


def largest_page(file: BinaryIO, chunk: pyarrow.parquet.ColumnChunkMetaData) -> int | None:
    """Return the largest uncompressed size of a page of a column chunk, in bytes.

    Args:
        file: the parquet file.
        chunk: the metadata of the chunk.

    Returns:
        None if the headers cannot be read, or if there are more than 100,000 pages.
    """
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end = at + chunk.total_compressed_size
    largest = 0
    try:
        for _ in range(_MOST_PAGES):
            if at >= end:
                return largest
            file.seek(at)
            sizes = _read_struct(file)
            largest = max(largest, sizes[_UNCOMPRESSED_SIZE])
            if sizes[_COMPRESSED_SIZE] < 0:
                return None
            at = file.tell() + sizes[_COMPRESSED_SIZE]
    except (ValueError, KeyError, OSError):
        pass
    return None


def _read_struct(file: BinaryIO, depth: int = 0) -> dict[int, int]:
    """Read a struct. Return its integers by the number of their field. Other fields are skipped.

    Raises:
        ValueError: if the bytes are no struct.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    integers: dict[int, int] = {}
    field = 0
    while head := _byte(file):
        kind = head & 15
        field = field + (head >> 4) if head >> 4 else _signed(file)
        if kind in _INTEGERS:
            integers[field] = _signed(file)
        elif kind not in (1, 2):  # booleans are in the head
            _skip(file, kind, depth)
    return integers


def _skip(file: BinaryIO, kind: int, depth: int) -> None:
    if kind in (1, 2):  # booleans of a list
        _byte(file)
    elif kind in _INTEGERS:
        _signed(file)
    elif kind == _DOUBLE:
        file.seek(8, 1)
    elif kind == _BINARY:
        file.seek(_varint(file), 1)
    elif kind in _LISTS:
        head = _byte(file)
        for _ in range(_varint(file) if head >> 4 == 15 else head >> 4):
            _skip(file, head & 15, depth + 1)
    elif kind == _STRUCT:
        _read_struct(file, depth + 1)
    else:
        raise ValueError(f"a page header has no type {kind}")


def _byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise ValueError("cut short")
    return read[0]


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("an integer has no end")


def _signed(file: BinaryIO) -> int:
    value = _varint(file)
    return (value >> 1) ^ -(value & 1)
