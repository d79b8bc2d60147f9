"""Read documents from files and folders with datatrove's readers. The files are local or at a URL of fsspec.

datatrove's readers skip broken input with a warning. A dataset would then lack documents, and nobody would know. In
this module, broken input is an error that names the file, and documents without text are counted.
"""

import gzip
import hashlib
import io
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pyarrow
import pyarrow.parquet
import zstandard
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader
from fsspec.implementations.local import LocalFileSystem
from loguru import logger

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.token_files import SUFFIXES as TOKEN_SUFFIXES
from exact_titan.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of this package that installs fsspec's library for a URL scheme. ``hf://`` needs no extra."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        name: name relative to the source's folder.
        bytes: size.
        version: a text that changes when the file changes.
    """

    name: str
    bytes: int
    version: str


class Source:
    """A file, or a folder with all its subfolders. The files are sorted by their relative names.

    Args:
        path: the file or folder, or its URL (``s3://``, ``gs://``, ``hf://datasets/``, …: the schemes of fsspec).
        text_key: key (column) of the text in .jsonl and .parquet files.
        pattern: shell pattern of the relative names of a folder's files (``data/train-*``). The source has only the
            files that match the pattern.

    Attributes:
        name: last part of the path.
        files: the files.

    Raises:
        InputError: if the path does not exist, cannot be listed, or has no file of a readable kind.
    """

    def __init__(self, path: str | Path, text_key: str, pattern: str | None = None) -> None:
        self.path = str(path)
        self.text_key = text_key
        if is_url(self.path):
            self.name = self.path.rstrip("/").rpartition("/")[2]
            self._root, self.files = _list_url(self.path)
        else:
            # The working directory may change during the life of a pool of workers: keep the absolute path.
            self._root = str(Path(path).absolute())
            self.name = Path(path).resolve().name if Path(path).name in ("", "..") else Path(path).name
            self.files = _list_local(Path(path))
        self.is_folder = not self.files or self.files[0].name != ""
        if not self.is_folder:
            self.files = [SourceFile(self.name, file.bytes, file.version) for file in self.files]
            if not self.name.endswith(SUFFIXES):
                kinds = ", ".join(SUFFIXES + TOKEN_SUFFIXES)
                raise InputError(f"source {path}: not a file of a readable kind ({kinds})")
        elif pattern is not None:
            self.files = [file for file in self.files if fnmatch(file.name, pattern)]
        if not self.files:
            kinds = ", ".join(SUFFIXES) + (f", {pattern}" if pattern is not None else "")
            raise InputError(f"source {path}: the folder has no file of a readable kind ({kinds})")

    def shown(self, file: SourceFile) -> str:
        """Return the name of the file for messages."""
        return f"{self.path.rstrip('/')}/{file.name}" if self.is_folder else self.path

    def location(self, file: SourceFile) -> str:
        """Return the path of the file. Two sources that share a file give the same path."""
        return f"{self._root}/{file.name}" if self.is_folder else self._root

    @contextmanager
    def open(self, file: SourceFile) -> Iterator["DocumentReader"]:
        """Open a file. A file at a URL is copied to the local disk until the context ends.

        Raises:
            InputError: if the file cannot be copied.
        """
        with ExitStack() as stack:
            if is_url(self.path):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exact-titan-")))
                local = folder / file.name.rpartition("/")[2]
                with _access(self.shown(file)):
                    fsspec.url_to_fs(self.path)[0].get_file(self.location(file), str(local))
            else:
                local = Path(self.location(file))
            yield DocumentReader(local, file.name, self.shown(file), self.text_key)


class DocumentReader:
    """The documents of one local file.

    Args:
        file: path of the file.
        name: name of the file in its digest.
        shown: name of the file in messages.
        text_key: key (column) of the text in .jsonl and .parquet files.

    Attributes:
        no_text: number of documents without text so far.
        progress: share of the file that has been read so far, from 0 to 1.
    """

    def __init__(self, file: Path, name: str, shown: str, text_key: str) -> None:
        self._file, self._name, self._shown, self._text_key = file, name, shown, text_key
        self._bytes: _DigestedFile | None = None
        self._row = self._rows = 0
        self.no_text = 0

    def texts(self) -> Iterator[str]:
        """Yield the text of every document with text, in the order of the file.

        Raises:
            InputError: if the file cannot be read. The error names the file, and the line if the file has lines.
        """
        for document in self._documents(self._text_adapter, read_metadata=False):
            yield document.text

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of every row, such as ``line 17``, and the contents of the row, in the order of the file.

        Raises:
            InputError: in the cases of :meth:`texts`; also if the file is plain text.
        """
        if self._name.endswith(".txt"):
            raise InputError(f"{self._shown} is plain text, and has no rows: give a .jsonl or .parquet file")
        for document in self._documents(self._row_adapter, read_metadata=True):
            yield document.id, document.metadata

    def _documents(self, adapter: Callable, *, read_metadata: bool) -> Iterator[Document]:
        logger.disable("datatrove")
        try:
            self._bytes = _DigestedFile(self._file)
            yield from self._reader(adapter, read_metadata=read_metadata).read_file(self._file.name)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise InputError(
                f"{self._shown} is broken or cut short ({error}): download or compress it again"
            ) from error
        except pyarrow.ArrowException as error:
            why = str(error).splitlines()[0]
            raise InputError(f"{self._shown} is not a whole parquet file ({why}): write it again") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._shown} is not UTF-8 ({error.reason} at byte {error.start}): convert it to UTF-8"
            ) from error
        except OSError as error:
            raise InputError(f"{self._shown} cannot be read: {error.strerror or error}") from error

    @property
    def progress(self) -> float:
        if self._bytes is None or not self._bytes.size:
            return 0.0
        if self._rows:
            return self._row / self._rows
        return self._bytes.done / self._bytes.size

    def digest(self) -> FileDigest:
        """Return size and digest of the whole file. After :meth:`texts`, the method reads only the rest of the file.

        Raises:
            InputError: if the file cannot be read.
        """
        try:
            read = self._bytes or _DigestedFile(self._file)
            return FileDigest(self._name, read.size, read.sha256())
        except OSError as error:
            raise InputError(f"{self._shown} cannot be read: {error.strerror or error}") from error

    def _reader(self, adapter: Callable, *, read_metadata: bool) -> BaseDiskReader:
        assert self._bytes is not None
        # With an explicit file system, datatrove does not parse the path as a URL.
        folder = (str(self._file.parent), LocalFileSystem())
        if self._name.endswith(".parquet"):
            self._rows = pyarrow.parquet.ParquetFile(self._file).metadata.num_rows
            options = {"read_metadata": read_metadata, "batch_size": 16}  # few rows at once: a document may be a book
            return ParquetReader(folder, adapter=adapter, text_key=self._text_key, **options)
        reader = _TextReader if self._name.endswith(".txt") else _JsonlReader
        return reader(self._bytes, self._shown, folder, adapter=adapter, text_key=self._text_key)

    @property
    def _row_adapter(self) -> Callable:
        rows = itertools.count(1)

        def adapter(reader: BaseReader, data: dict[str, Any], path: str, id_in_file: int) -> dict[str, Any]:
            self._row = next(rows)
            name = f"row {self._row}" if path.endswith(".parquet") else f"line {id_in_file + 1}"
            return {"text": name, "id": name, "metadata": data}  # datatrove skips a document without text

        return adapter

    @property
    def _text_adapter(self) -> Callable:
        rows = itertools.count(1)

        def adapter(reader: BaseReader, data: dict[str, Any], path: str, id_in_file: int) -> dict[str, Any]:
            # id_in_file of ParquetReader does not count documents without text.
            self._row = next(rows)
            text = data.get(self._text_key)
            if text is not None and not isinstance(text, str):
                where = f"row {self._row}" if path.endswith(".parquet") else f"line {id_in_file + 1}"
                raise InputError(f"{self._shown}, {where}: {self._text_key!r} is {type(text).__name__}, not text")
            if not text or text.isspace():
                self.no_text += 1
                text = ""
            return {"text": text, "id": f"{path}/{id_in_file}"}

        return adapter


def is_url(path: str) -> bool:
    """Return whether a path is a URL: a path with a scheme and ``://``."""
    return "://" in path


def _list_local(path: Path) -> list[SourceFile]:
    """List the readable files of a folder, sorted by name. For a file, list the file with an empty name."""
    try:
        if path.is_dir():
            names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            return [_local_file(path / name, name) for name in sorted(names) if name.endswith(SUFFIXES)]
        return [_local_file(path, "")]
    except FileNotFoundError as error:
        raise InputError(f"source {path}: no such file or folder") from error
    except OSError as error:
        raise InputError(f"source {path} cannot be read: {error.strerror}") from error


def _local_file(file: Path, name: str) -> SourceFile:
    stat = file.stat()
    return SourceFile(name, stat.st_size, str(stat.st_mtime_ns))


def _list_url(url: str) -> tuple[str, list[SourceFile]]:
    """Return the path of a URL in its file system, and the files as :func:`_list_local` lists files."""
    with _access(f"source {url}"):
        fs, root = fsspec.url_to_fs(url)
        found = fs.find(root, detail=True)
    if not found:
        raise InputError(f"source {url}: no such file or folder")
    root = root.rstrip("/")
    if list(found) == [root]:
        return root, [_remote_file("", found[root])]
    names = {path.removeprefix(root).lstrip("/"): info for path, info in found.items()}
    return root, [_remote_file(name, names[name]) for name in sorted(names) if name.endswith(SUFFIXES)]


def _remote_file(name: str, info: dict[str, Any]) -> SourceFile:
    version = hashlib.sha256(str(sorted((key, str(value)) for key, value in info.items())).encode()).hexdigest()
    return SourceFile(name, int(info["size"] or 0), version)


@contextmanager
def _access(what: str) -> Iterator[None]:
    """Convert every error of a remote file system's library to an :class:`InputError` of one line."""
    try:
        yield
    except ImportError as error:
        scheme = what.removeprefix("source ").partition("://")[0]
        extra = f": pip install 'exact-titan[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise InputError(f"{what} cannot be read ({error}){extra}") from error
    except FileNotFoundError as error:
        raise InputError(f"{what}: no such file or folder") from error
    except ValueError as error:
        raise InputError(f"{what} cannot be read: {error}") from error
    except Exception as error:
        why = str(error).strip() or type(error).__name__
        raise InputError(f"{what} cannot be read: {why.splitlines()[0]}") from error


class _DigestedFile(io.RawIOBase):
    """A file that is read from its start. Every read adds to the digest.

    Attributes:
        size: bytes of the file.
        done: bytes that have been read so far.
    """

    def __init__(self, file: Path) -> None:
        self._stream = file.open("rb", buffering=0)
        self._digest = hashlib.sha256()
        self.size = file.stat().st_size
        self.done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._stream.readinto(buffer)
        self._digest.update(memoryview(buffer)[:size])
        self.done += size
        return size

    def sha256(self) -> str:
        """Read the rest of the file, and return the digest (hex) of the whole file."""
        block = bytearray(2**20)
        while self.readinto(block):
            pass
        self._stream.close()
        return self._digest.hexdigest()


class _JsonlReader(JsonlReader):
    """Reads JSON lines. A line that is not JSON is an error, which names the file as ``shown``."""

    def __init__(self, stream: _DigestedFile, shown: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stream, self._shown = stream, shown

    def read_file(self, filepath: str) -> DocumentsPipeline:
        lines: Any = io.BufferedReader(self._stream, 2**18)
        if filepath.endswith(".zst"):
            lines = io.BufferedReader(_ZstdStream(lines), 2**20)
        elif filepath.endswith(".gz"):
            lines = io.BufferedReader(gzip.GzipFile(fileobj=lines), 2**20)
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                data = orjson.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{self._shown}, line {number + 1}: {_why_not_json(line, error)}") from error
            if not isinstance(data, dict):
                raise InputError(
                    f"{self._shown}, line {number + 1}: not a JSON object: a document must be a JSON object"
                )
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
    """Reads plain text. A file is one document."""

    name = "text"

    def __init__(self, stream: _DigestedFile, _shown: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stream = stream

    def read_file(self, filepath: str) -> DocumentsPipeline:
        text = self._stream.readall().decode("utf-8-sig")
        document = self.get_document_from_dict({self.text_key: text}, filepath, 0)
        if document:
            yield document


class _ZstdStream(io.RawIOBase):
    """Decompresses all zstd frames of a file.

    fsspec would stop after the first frame, and would not notice that a file is cut short.
    """

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
