"""JSONL files with a header line: prompt sets, answers and scores.

The first line is the header, ``{"header": {…}}``. Every other line is one record. A file is written whole
(:func:`write_records`), or record by record (:class:`RecordAppender`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from exact_titan.errors import InputError
from exact_titan.system.atomic_files import partial_of, publish
from exact_titan.system.file_errors import naming
from exact_titan.system.json_files import parse_json


def write_records(file: Path, header: dict[str, Any], records: Iterable[dict[str, Any]]) -> None:
    """Write a file atomically: the file appears when all records are on the disk. An existing file is replaced."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(file)
    try:
        with naming(file):
            with partial.open("w", encoding="utf-8") as out:
                out.write(_line({"header": header}))
                out.writelines(map(_line, records))
            publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a file.

    Raises:
        InputError: if the file is missing or cannot be read, or if its first line is no header.
    """
    try:
        with file.open("rb") as lines:
            first = lines.readline()
        header = parse_json(first)["header"]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: the first line is not a header ({error}): make the file again") from None
    if not isinstance(header, dict):
        raise InputError(f"{file}: the first line is not a header: make the file again")
    return header


def read_records(file: Path, *, incomplete_end: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of a file without its header.

    Args:
        file: the file.
        incomplete_end: whether a last line without its line break is passed over. A writer that was killed leaves such
            a line.

    Raises:
        InputError: naming the line that is no record.
    """
    try:
        with file.open("rb") as lines:
            next(lines, None)
            for number, line in enumerate(lines, start=2):
                if incomplete_end and not line.endswith(b"\n"):
                    return
                try:
                    record = parse_json(line)
                except ValueError as error:
                    raise InputError(f"{file}: line {number} is not a record ({error}): make the file again") from None
                if not isinstance(record, dict):
                    raise InputError(f"{file}: line {number} is not a JSON object: make the file again")
                yield record
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None


class RecordAppender:
    """Append records to a file, each with one write, for a file that survives a kill at any moment.

    A new file gets the header. An incomplete last line of an existing file is removed.

    Args:
        file: the file.
        header: header of a new file. The caller compares the header of an existing file.
    """

    def __init__(self, file: Path, header: dict[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._out = file.open("ab+")
        self._out.seek(0)
        complete = sum(len(line) for line in self._out if line.endswith(b"\n"))
        self._out.truncate(complete)
        if not complete:
            self._write({"header": header})

    def append(self, record: dict[str, Any]) -> None:
        """Append one record. The record is on its way to the disk when the method returns."""
        self._write(record)

    def __enter__(self) -> "RecordAppender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._out.fileno())
        self._out.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._out.write(_line(record).encode("utf-8"))
        self._out.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
