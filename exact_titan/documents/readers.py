"""Read the rows of one local file, or the values of its text column, in any format of :mod:`file_kinds`.

For documents, only the text column is read: another column may hold values that Python cannot represent. The readers of
datatrove and datasets convert all columns, and datatrove skips broken input with a warning. In this module, broken
input is an error that names the file and the line or row.
"""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from exact_titan.documents import json_documents
from exact_titan.documents.file_kinds import FileKind
from exact_titan.documents.streams import DigestedFile, decompressed
from exact_titan.errors import InputError

# Few rows at once: a document may be a book.
_ROWS = 16


@dataclass
class Reader(ABC):
    """Reads one file.

    Attributes:
        stream: the file, from its start. The stream computes the digest of the file.
        file: path of the file, for formats that are not read from start to end.
        kind: format and compression.
        shown: name of the file in messages.
        text_key: key or column of the text.
        progress: share of the file that has been read, from 0 to 1.
        unit: the unit of the numbers of :meth:`rows` and :meth:`values`.
    """

    stream: DigestedFile
    file: Path
    kind: FileKind
    shown: str
    text_key: str
    unit: ClassVar[str] = "line"

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number from 1, values by column) of every row.

        Raises:
            InputError: if the file is broken or has no rows. The error names the file and the line or row.
        """

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield (number from 1, value of the text column) of every document. The value may be no text.

        Raises:
            InputError: in the cases of :meth:`rows`; also if a table has no text column.
        """
        for number, row in self.rows():
            yield number, row.get(self.text_key)

    @property
    def progress(self) -> float:
        return self.stream.done / self.stream.size if self.stream.size else 0.0

    def _bytes(self) -> io.BufferedReader:
        return decompressed(self.stream, self.kind.compression)

    def _check_column(self, columns: Iterable[str]) -> None:
        columns = list(columns)
        if self.text_key not in columns:
            shown = ", ".join(columns[:20])
            raise InputError(f"{self.shown} has no column {self.text_key!r} (it has {shown}): see --text-key")


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
        yield 1, self._bytes().read().decode("utf-8-sig")


class CsvReader(Reader):
    """``.csv``: the first row names the columns."""

    unit: ClassVar[str] = "row"

    def values(self) -> Iterator[tuple[int, Any]]:
        for number, row in self.rows():
            if self.text_key not in row:
                self._check_column(row)
            yield number, row[self.text_key]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
        rows = csv.reader(io.TextIOWrapper(self._bytes(), "utf-8-sig", newline=""), strict=True)
        columns: list[str] | None = None
        number = 0
        try:
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    columns = row
                    continue
                number += 1
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


class ArrowTableReader(Reader):
    """A format of Apache Arrow. Counts the rows for the progress."""

    unit: ClassVar[str] = "row"
    _row = _total = 0

    @abstractmethod
    def _batches(self, column: str | None) -> Iterator[pyarrow.RecordBatch]:
        """Yield the rows in batches, with this column only or with all columns. Set the total number of rows."""

    @property
    def progress(self) -> float:
        return self._row / self._total if self._total else super().progress

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for batch in self._batches(None):
            yield from self._converted(batch)

    def values(self) -> Iterator[tuple[int, Any]]:
        for batch in self._batches(self.text_key):
            yield from self._converted(batch.column(self.text_key))

    def _converted(self, batch: pyarrow.RecordBatch | pyarrow.Array) -> Iterator[tuple[int, Any]]:
        for start in range(0, len(batch), _ROWS):
            part = batch.slice(start, _ROWS)
            try:
                values = part.to_pylist()
            except (ValueError, OverflowError):
                values = [self._one(part.slice(row, 1), self._row + row + 1) for row in range(len(part))]
            for value in values:
                self._row += 1
                yield self._row, value

    def _one(self, part: pyarrow.RecordBatch | pyarrow.Array, number: int) -> Any:
        try:
            return part.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            what = f"{self.text_key!r}" if isinstance(part, pyarrow.Array) else "a value"
            why = str(error).splitlines()[0]
            raise InputError(
                f"{self.shown}, row {number}: {what} cannot be read ({why}): correct or remove the row"
            ) from error


class ParquetReader(ArrowTableReader):
    """``.parquet``."""

    def _batches(self, column: str | None) -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.parquet.ParquetFile(self.file) as table:
            if column is not None:
                self._check_column(table.schema_arrow.names)
            self._total = table.metadata.num_rows
            yield from table.iter_batches(batch_size=_ROWS, columns=None if column is None else [column])


class ArrowReader(ArrowTableReader):
    """``.arrow``: the file format and the stream format of Arrow IPC. The library datasets writes the stream format."""

    def _batches(self, column: str | None) -> Iterator[pyarrow.RecordBatch]:
        with self.file.open("rb") as stream:
            is_file = stream.read(6) == b"ARROW1"
            stream.seek(-min(4, self.stream.size), io.SEEK_END)
            is_whole = is_file or stream.read() == b"\0\0\0\0"
        if not is_whole:
            raise InputError(f"{self.shown} is cut short (the end of its stream is missing): copy or write it again")
        if is_file:
            with pyarrow.memory_map(str(self.file)) as source, pyarrow.ipc.open_file(source) as table:
                if column is not None:
                    self._check_column(table.schema.names)
                self._total = sum(table.get_batch(number).num_rows for number in range(table.num_record_batches))
                yield from map(table.get_batch, range(table.num_record_batches))
            return
        with pyarrow.ipc.open_stream(self._bytes()) as batches:
            if column is not None:
                self._check_column(batches.schema.names)
            yield from batches


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
