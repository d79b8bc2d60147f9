"""Read the values of the text column of one local file, in any format of :mod:`file_kinds`.

Only the text column is read: another column may hold values that Python cannot represent. datatrove's and datasets'
readers convert all columns, and skip broken input with a warning. In this module, broken input is an error that names
the file and the line or row.
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
        unit: the unit of the numbers of :meth:`values`.
    """

    stream: DigestedFile
    file: Path
    kind: FileKind
    shown: str
    text_key: str
    unit: ClassVar[str] = "line"

    @abstractmethod
    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield (number from 1, value of the text column) of every document. The value may be no text."""

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

    def values(self) -> Iterator[tuple[int, Any]]:
        for number, document in json_documents.read_lines(self._bytes(), self.shown):
            yield number, document.get(self.text_key)


class JsonReader(Reader):
    """``.json``: lines, one array, or objects over several lines."""

    def values(self) -> Iterator[tuple[int, Any]]:
        for number, document in json_documents.read_any(self._bytes(), self.shown):
            yield number, document.get(self.text_key)


class TextReader(Reader):
    """``.txt``: a file is one document."""

    def values(self) -> Iterator[tuple[int, Any]]:
        yield 1, self._bytes().read().decode("utf-8-sig")


class CsvReader(Reader):
    """``.csv``: the first row names the columns."""

    unit: ClassVar[str] = "row"

    def values(self) -> Iterator[tuple[int, Any]]:
        csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
        rows = csv.reader(io.TextIOWrapper(self._bytes(), "utf-8-sig", newline=""), strict=True)
        columns: list[str] | None = None
        number = 0
        try:
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    self._check_column(row)
                    columns, index = row, row.index(self.text_key)
                    continue
                number += 1
                if len(row) != len(columns):
                    raise InputError(
                        f"{self.shown}, row {number} (line {rows.line_num}) has {len(row)} cells, the first row has "
                        f"{len(columns)}: quote cells with commas, or remove the row"
                    )
                yield number, row[index]
        except csv.Error as error:
            raise InputError(
                f"{self.shown}, row {number + 1} (line {rows.line_num}) is not CSV ({error}): correct or remove the row"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.shown}, row {number + 1} or later: not UTF-8 ({error.reason}): convert the file to UTF-8"
            ) from error


class ArrowColumn(Reader):
    """A format of Apache Arrow. Counts the rows for the progress."""

    unit: ClassVar[str] = "row"
    _row = _total = 0

    @property
    def progress(self) -> float:
        return self._row / self._total if self._total else super().progress

    def _column_values(self, column: pyarrow.Array) -> Iterator[tuple[int, Any]]:
        for start in range(0, len(column), _ROWS):
            cells = column.slice(start, _ROWS)
            try:
                values = cells.to_pylist()
            except (ValueError, OverflowError):
                values = list(map(self._cell, range(self._row + 1, self._row + len(cells) + 1), cells))
            for value in values:
                self._row += 1
                yield self._row, value

    def _cell(self, number: int, cell: pyarrow.Scalar) -> Any:
        try:
            return cell.as_py()
        except (ValueError, OverflowError) as error:
            why = str(error).splitlines()[0]
            raise InputError(
                f"{self.shown}, row {number}: {self.text_key!r} cannot be read ({why}): correct or remove the row"
            ) from error


class ParquetReader(ArrowColumn):
    """``.parquet``."""

    def values(self) -> Iterator[tuple[int, Any]]:
        with pyarrow.parquet.ParquetFile(self.file) as table:
            self._check_column(table.schema_arrow.names)
            self._total = table.metadata.num_rows
            for batch in table.iter_batches(batch_size=_ROWS, columns=[self.text_key]):
                yield from self._column_values(batch.column(0))


class ArrowReader(ArrowColumn):
    """``.arrow``: the file format and the stream format of Arrow IPC. The library datasets writes the stream format."""

    def values(self) -> Iterator[tuple[int, Any]]:
        with self.file.open("rb") as stream:
            is_file = stream.read(6) == b"ARROW1"
            stream.seek(-min(4, self.stream.size), io.SEEK_END)
            is_whole = is_file or stream.read() == b"\0\0\0\0"
        if not is_whole:
            raise InputError(f"{self.shown} is cut short (the end of its stream is missing): copy or write it again")
        if is_file:
            with pyarrow.memory_map(str(self.file)) as source, pyarrow.ipc.open_file(source) as table:
                self._check_column(table.schema.names)
                self._total = sum(table.get_batch(number).num_rows for number in range(table.num_record_batches))
                for number in range(table.num_record_batches):
                    yield from self._column_values(table.get_batch(number).column(self.text_key))
            return
        with pyarrow.ipc.open_stream(self._bytes()) as batches:
            self._check_column(batches.schema.names)
            for batch in batches:
                yield from self._column_values(batch.column(self.text_key))


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
