"""Documents from files and folders, read by datatrove's readers.

Those readers pass over broken input with a warning. Here what cannot be read stops the run and names the file, and
what has no text is counted: a dataset must not lack documents that nobody knows of.
"""

import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import zstandard
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader
from fsspec.implementations.local import LocalFileSystem
from loguru import logger

from exact_titan.data.token_files import SUFFIXES as TOKEN_SUFFIXES
from exact_titan.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")


class Source:
    """A file, or a folder read recursively, its files in the order of their relative names.

    Args:
        path: the file or folder.
        text_key: key (column) of the text in .jsonl and .parquet files.

    Attributes:
        name: last part of the path.
        files: the files, relative to ``root``.
        bytes, sha256, no_text: size, digest and documents without text of what :meth:`texts` has read so far.

    Raises:
        InputError: if it does not exist, or holds no file of a readable kind.
    """

    def __init__(self, path: Path, text_key: str) -> None:
        if not path.exists():
            raise InputError(f"source {path}: no such file or folder")
        self.path = path
        self.text_key = text_key
        self.name = path.resolve().name if path.name in ("", "..") else path.name
        if path.is_dir():
            self.root = path
            names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            self.files = sorted(name for name in names if name.endswith(SUFFIXES))
            if not self.files:
                raise InputError(f"source {path}: the folder has no file of a readable kind ({', '.join(SUFFIXES)})")
        else:
            self.root = path.parent
            self.files = [path.name]
            if not path.name.endswith(SUFFIXES):
                raise InputError(
                    f"source {path}: not a file of a readable kind ({', '.join(SUFFIXES + TOKEN_SUFFIXES)})"
                )
        self.bytes = 0
        self.no_text = 0
        self._digests: list[str] = []

    @property
    def sha256(self) -> str:
        """Hex digest of the file, or of a folder's sorted relative names and file digests."""
        if not self.path.is_dir():
            return self._digests[0]
        lines = "".join(f"{digest}  {name}\n" for name, digest in zip(self.files, self._digests, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        """The text of every document that has one, in order.

        Raises:
            InputError: naming the file, and the line if there is one, for what cannot be read; and at the end if the
                source held no document with text.
        """
        logger.disable("datatrove")
        found = False
        for name in self.files:
            self._take_digest(self.root / name)
            reader = _reader(self, name)
            try:
                for document in reader.read_file(name):
                    found = True
                    yield document.text
            except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
                raise InputError(
                    f"{self.root / name} is broken or cut short ({error}): download or compress it again"
                ) from error
            except pyarrow.ArrowException as error:
                why = str(error).splitlines()[0]
                raise InputError(f"{self.root / name} is not a whole parquet file ({why}): write it again") from error
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.root / name} is not UTF-8 ({error.reason} at byte {error.start}): convert it to UTF-8"
                ) from error
            except OSError as error:
                raise InputError(f"{self.root / name} cannot be read: {error.strerror or error}") from error
        if not found:
            why = (
                f"{self.no_text} documents have none under {self.text_key!r}, see --text-key"
                if self.no_text
                else "empty"
            )
            raise InputError(f"source {self.path}: no document with text ({why})")

    def _take_digest(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                self._digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
                self.bytes += stream.tell()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _reader(source: Source, name: str) -> BaseDiskReader:
    rows = itertools.count(1)

    def adapter(reader: BaseReader, data: dict[str, Any], path: str, id_in_file: int) -> dict[str, Any]:
        # ParquetReader's id_in_file passes over documents without text.
        row = next(rows)
        text = data.get(source.text_key)
        if text is not None and not isinstance(text, str):
            where = f"row {row}" if path.endswith(".parquet") else f"line {id_in_file + 1}"
            raise InputError(f"{source.root / path}, {where}: {source.text_key!r} is {type(text).__name__}, not text")
        if not text or text.isspace():
            source.no_text += 1
            text = ""
        return {"text": text, "id": f"{path}/{id_in_file}"}

    # The file system is named because a path is not to be taken for a URL; the path is absolute because fsspec keeps
    # the folders it has opened, and what a relative one means may have changed.
    folder = (str(source.root.absolute()), LocalFileSystem())
    if name.endswith(".parquet"):
        # Rows in small batches: a document may be a book.
        return ParquetReader(folder, adapter=adapter, text_key=source.text_key, read_metadata=False, batch_size=16)
    if name.endswith(".txt"):
        return _TextReader(folder, adapter=adapter, text_key=source.text_key)
    return _JsonlReader(source.root / name, folder, adapter=adapter, text_key=source.text_key)


class _JsonlReader(JsonlReader):
    """JSON lines, where a line that is not JSON is an error that names the file as ``shown``."""

    def __init__(self, shown: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shown = shown

    def read_file(self, filepath: str) -> DocumentsPipeline:
        compression = None if filepath.endswith(".zst") else "infer"
        with self.data_folder.open(filepath, "rb", compression=compression) as stream:
            lines = io.BufferedReader(_ZstdStream(stream), 2**20) if filepath.endswith(".zst") else stream
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                try:
                    data = orjson.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line)
                except orjson.JSONDecodeError as error:
                    raise InputError(f"{self._shown}, line {number + 1}: {_why_not_json(line, error)}") from error
                if not isinstance(data, dict):
                    raise InputError(f"{self._shown}, line {number + 1}: not a JSON object, as a document must be")
                document = self.get_document_from_dict(data, filepath, number)
                if document:
                    yield document


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 ({wrong.reason} at byte {wrong.start} of the line): convert the file to UTF-8"
    return f"not JSON ({error}): correct or remove the line"


class _TextReader(BaseDiskReader):
    """Plain text, one document a file."""

    name = "text"

    def read_file(self, filepath: str) -> DocumentsPipeline:
        with self.data_folder.open(filepath, "rb") as stream:
            document = self.get_document_from_dict({self.text_key: stream.read().decode("utf-8-sig")}, filepath, 0)
        if document:
            yield document


class _ZstdStream(io.RawIOBase):
    """Decompressed zstd, all frames of the file. fsspec stops after the first, and takes a cut file for whole."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._frame_open = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._frame_open = False
            block = block or self._stream.read(2**17)
            if not block:
                if self._frame_open:
                    raise EOFError("the last zstd frame has no end")
                return 0
            self._frame_open = True
            self._ready = memoryview(self._frame.decompress(block))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
