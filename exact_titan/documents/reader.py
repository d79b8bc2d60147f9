"""The interface of the readers of all formats (:mod:`readers`)."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from exact_titan.documents.file_kinds import FileKind
from exact_titan.documents.streams import DigestedFile, compression_of, decompressed
from exact_titan.errors import InputError

_MOST_LETTERS = 500


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
        left_out: number of documents without a value that :meth:`values` did not yield.
        unit: the unit of the numbers of :meth:`rows` and :meth:`values`.
    """

    stream: DigestedFile
    file: Path
    kind: FileKind
    shown: str
    text_key: str
    left_out: int = field(default=0, init=False)
    unit: ClassVar[str] = "line"

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number from 1, values by column) of every row.

        Raises:
            InputError: if the file is broken or has no rows. The error names the file and the line or row.
        """

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield (number from 1, value of the text column) of every document. The value may be no text.

        Runs of documents without a value may be left out, and :attr:`left_out` counts these documents.

        Raises:
            InputError: in the cases of :meth:`rows`; also if a table has no text column.
        """
        for number, row in self.rows():
            yield number, row.get(self.text_key)

    @property
    def progress(self) -> float:
        return self.stream.done / self.stream.size if self.stream.size else 0.0

    def _bytes(self) -> io.BufferedReader:
        stream = decompressed(self.stream, self.kind.compression)
        if not self.kind.compression and (suffix := compression_of(stream)):
            content = {".csv": "CSV", ".txt": "plain text"}.get(self.kind.format, "JSON")
            raise InputError(f"{self.shown}, line 1: not {content}, the file is compressed: end its name with {suffix}")
        return stream

    def _check_column(self, columns: Iterable[str]) -> None:
        columns = list(columns)
        if self.text_key not in columns:
            shown = " ".join(", ".join(columns[:20]).split())[:_MOST_LETTERS]
            raise InputError(f"{self.shown} has no column {self.text_key!r} (it has {shown}): see --text-key")
        if columns.count(self.text_key) > 1:
            raise InputError(f"{self.shown} has several columns {self.text_key!r}: give each column its own name")
