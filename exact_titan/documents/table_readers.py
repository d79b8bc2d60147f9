"""Read the tables of Apache Arrow: parquet files and Arrow IPC, in batches of bounded size."""

import io
from abc import abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, ClassVar

import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet

from exact_titan.documents import limits
from exact_titan.documents.parquet_pages import largest_page
from exact_titan.documents.reader import Reader
from exact_titan.errors import InputError

_BATCH_ROWS = 1024
_BUFFER = 2**20


class TableReader(Reader):
    """A format of Apache Arrow. Counts the rows for the progress."""

    unit: ClassVar[str] = "row"
    _row = _total = _expanded = 0

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
            column = batch.column(self.text_key)
            if column.null_count == len(column):
                self.left_out += len(column)
                self._row += len(column)
            else:
                yield from self._converted(column)

    def _converted(self, batch: pyarrow.RecordBatch | pyarrow.Array) -> Iterator[tuple[int, Any]]:
        """Convert rows to Python. Large rows and rows of a dictionary are converted one by one."""
        sizes = _dictionary_sizes(batch)
        size = batch.nbytes if sizes is None else pyarrow.compute.sum(sizes).as_py() or 0
        self._expanded += size
        limits.check_expansion(self._expanded, self.stream.size)
        if size <= limits.ROWS_BYTES:
            try:
                values = batch.to_pylist()
            except (ValueError, OverflowError):
                pass  # the error of one row, below
            else:
                for value in values:
                    self._row += 1
                    yield self._row, value
                return
        for row in range(len(batch)):
            one = batch.slice(row, 1)
            size = one.nbytes if sizes is None else sizes[row].as_py() or 0
            if size > limits.DOCUMENT_BYTES:
                raise limits.too_large(f"{self.shown}, row {self._row + 1}", "the row", size)
            value = self._one(one)
            self._row += 1
            yield self._row, value

    def _one(self, part: pyarrow.RecordBatch | pyarrow.Array) -> Any:
        try:
            return part.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            what = f"{self.text_key!r}" if isinstance(part, pyarrow.Array) else "a value"
            why = str(error).splitlines()[0]
            raise InputError(
                f"{self.shown}, row {self._row + 1}: {what} cannot be read ({why}): correct or remove the row"
            ) from error

    def _check_regular(self) -> None:
        if not self.stream.is_regular:
            raise InputError(f"{self.shown} is a pipe, and a table is not read from start to end: give a file")


def _dictionary_sizes(batch: pyarrow.RecordBatch | pyarrow.Array) -> pyarrow.Array | None:
    """Return the bytes of each text that a column takes from a dictionary. None for other columns."""
    if isinstance(batch, pyarrow.RecordBatch) or not pyarrow.types.is_dictionary(batch.type):
        return None
    try:
        sizes = pyarrow.compute.binary_length(batch.dictionary).cast(pyarrow.int64())
    except pyarrow.ArrowNotImplementedError:
        return None  # no texts
    return sizes.take(batch.indices)


class ParquetReader(TableReader):
    """``.parquet``."""

    def _batches(self, column: str | None) -> Iterator[pyarrow.RecordBatch]:
        self._check_regular()
        # A buffer: the file would otherwise be read by the column chunk, which may be as large as the file.
        with pyarrow.parquet.ParquetFile(self.file, buffer_size=_BUFFER) as table:
            if column is not None:
                self._check_column(table.schema_arrow.names)
            self._total = table.metadata.num_rows
            columns = None if column is None else [column]
            for group in range(table.metadata.num_row_groups):
                rows = self._rows_at_once(table.metadata.row_group(group), group, column)
                yield from table.iter_batches(batch_size=rows, row_groups=[group], columns=columns)

    def _rows_at_once(self, group: pyarrow.parquet.RowGroupMetaData, number: int, column: str | None) -> int:
        """Return the number of rows that are not larger than a batch, by the sizes that the pages declare."""
        size = 0
        with self.file.open("rb") as file:
            for index in range(group.num_columns):
                chunk = group.column(index)
                if column is not None and chunk.path_in_schema.split(".")[0] != column.split(".")[0]:
                    continue
                largest = largest_page(file, chunk)
                if largest is None:
                    return 1
                size += largest
                possible = largest * chunk.num_values
                if possible > limits.EXPANDED_BYTES and possible > limits.EXPANSION * self.stream.size:
                    self._check_expansion_of(number, chunk)
        return max(1, min(_BATCH_ROWS, limits.ROWS_BYTES // max(size, 1)))

    def _check_expansion_of(self, group: int, chunk: pyarrow.parquet.ColumnChunkMetaData) -> None:
        """Check the size of all texts of a row group without making the texts."""
        column = chunk.path_in_schema
        if not chunk.has_dictionary_page or "." in column:
            return
        expanded = self._expanded
        with pyarrow.parquet.ParquetFile(self.file, buffer_size=_BUFFER, read_dictionary=[column]) as table:
            for batch in table.iter_batches(batch_size=2**16, row_groups=[group], columns=[column]):
                sizes = _dictionary_sizes(batch.column(0))
                if sizes is None:
                    return
                expanded += pyarrow.compute.sum(sizes).as_py() or 0
                limits.check_expansion(expanded, self.stream.size)


class ArrowReader(TableReader):
    """``.arrow``: the file format and the stream format of Arrow IPC. The library datasets writes the stream format."""

    _at = 0

    @property
    def progress(self) -> float:
        return self._at / self.stream.size if self.stream.size else 0.0

    def _batches(self, column: str | None) -> Iterator[pyarrow.RecordBatch]:
        self._check_regular()
        with self.file.open("rb") as stream:
            is_file = stream.read(6) == b"ARROW1"
            stream.seek(-min(4, self.stream.size), io.SEEK_END)
            is_whole = is_file or stream.read() == b"\0\0\0\0"
        if not is_whole:
            raise InputError(f"{self.shown} is cut short (the end of its stream is missing): copy or write it again")
        # pyarrow compares declared sizes with the file before it allocates, if the file is mapped.
        with pyarrow.memory_map(str(self.file)) as source:
            opened = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            with closing(_batches_of(opened)) as batches:
                if column is not None:
                    self._check_column(opened.schema.names)
                for batch in batches:
                    for one in batch.columns if column is None else [batch.column(column)]:
                        _check_layout(one)
                    self._at = source.tell()
                    yield batch


def _check_layout(array: pyarrow.Array) -> None:
    """Check that the offsets of an array stay inside its buffers. pyarrow does not check them, and may crash.

    The letters are not checked: a broken letter is named with its row.
    """
    as_bytes = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    (array.view(as_bytes[array.type]) if array.type in as_bytes else array).validate(full=True)


def _batches_of(
    opened: pyarrow.ipc.RecordBatchFileReader | pyarrow.ipc.RecordBatchStreamReader,
) -> Generator[pyarrow.RecordBatch, None, None]:
    with opened:
        if isinstance(opened, pyarrow.ipc.RecordBatchFileReader):
            yield from map(opened.get_batch, range(opened.num_record_batches))
        else:
            yield from opened
