"""Read the rows of one local file, or the values of its text column, in any format of :mod:`file_kinds`.

For documents, only the text column is read: another column may hold values that Python cannot represent. The readers of
datatrove and datasets convert all columns, and datatrove skips broken input with a warning. In this module, broken
input is an error that names the file and the line or row. Memory is bounded (:mod:`limits`).
"""

import csv
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from exact_titan.documents import json_documents, limits
from exact_titan.documents.reader import Reader
from exact_titan.documents.table_readers import ArrowReader, ParquetReader
from exact_titan.errors import InputError


class JsonLinesReader(Reader):
    """``.jsonl`` and ``.ndjson``: one object per line."""

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from json_documents.read_lines(self._bytes(), self.shown)


class JsonReader(Reader):
    """``.json``: lines, one array, or objects over several lines."""

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from json_documents.read_any(self._bytes(), self.shown)


class TextReader(Reader):
    """``.txt``: a file is one document."""

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        raise InputError(f"{self.shown} is plain text, and has no rows: give a .jsonl or .parquet file")

    def values(self) -> Iterator[tuple[int, Any]]:
        stream, content = self._bytes(), bytearray()
        while block := stream.read(2**20):
            content += block
            if len(content) > limits.DOCUMENT_BYTES:
                raise limits.too_large(self.shown, "the file is one document, and")
        yield 1, content.decode("utf-8-sig")


class CsvReader(Reader):
    """``.csv``: the first row names the columns."""

    unit: ClassVar[str] = "row"

    def values(self) -> Iterator[tuple[int, Any]]:
        for number, row in self.rows():
            if self.text_key not in row:
                self._check_column(row)
            yield number, row[self.text_key]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        csv.field_size_limit(limits.CSV_ROW)  # the default is 131,072 characters
        lines = _CsvLines(self._bytes(), self.shown)
        rows = csv.reader(lines, strict=True)
        columns: list[str] | None = None
        number = 0
        try:
            for row in rows:
                lines.end_row(number)
                if not row:
                    continue
                if columns is None:
                    columns = row
                    if self.text_key in columns:
                        self._check_column(columns)
                    continue
                number += 1
                lines.end_row(number)
                if len(row) != len(columns):
                    raise InputError(
                        f"{self.shown}, row {number} (line {rows.line_num}) has {len(row)} cells, the first row has "
                        f"{len(columns)}: quote cells with commas, or remove the row"
                    )
                yield number, dict(zip(columns, row, strict=True))
        except csv.Error as error:
            raise InputError(
                f"{self.shown}, row {number + 1} (line {rows.line_num}) is not CSV ({error}): correct or remove the row"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.shown}, row {number + 1} or later: not UTF-8 ({error.reason}): convert the file to UTF-8"
            ) from error


class _CsvLines:
    """The lines of a CSV file. A row may have several lines. The size of a row is bounded."""

    def __init__(self, stream: io.BufferedReader, shown: str) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        self._shown, self._row = shown, 1
        self._characters = self._cells = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(limits.CSV_ROW + 1):
            self._characters += len(line)
            if self._characters > limits.CSV_ROW:
                raise limits.too_large(f"{self._shown}, row {self._row}", "the row", most=limits.CSV_ROW)
            if self._characters > limits.VALUES:  # a cell needs a character
                self._cells += line.count(",")
                if self._cells > limits.VALUES:
                    raise limits.too_many_values(f"{self._shown}, row {self._row}")
            yield line

    def end_row(self, rows: int) -> None:
        """Begin the next row. ``rows`` is the number of finished rows, without the row of the columns."""
        self._row = rows + 1
        self._characters = self._cells = 0


READERS: dict[str, type[Reader]] = {
    ".jsonl": JsonLinesReader,
    ".ndjson": JsonLinesReader,
    ".json": JsonReader,
    ".csv": CsvReader,
    ".txt": TextReader,
    ".parquet": ParquetReader,
    ".arrow": ArrowReader,
}
"""The reader of every format of :data:`~exact_titan.documents.file_kinds.FORMATS`."""
