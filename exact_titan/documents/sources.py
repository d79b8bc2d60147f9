"""Sources: a file or a folder of documents, on the local disk or at a URL of fsspec, and the texts of its documents.

A dataset must not lack documents without a word. Broken input is an error that names the file. Documents without text
and files that a source does not read are counted.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.file_kinds import KINDS, kind_of
from exact_titan.documents.git_lfs import refuse_pointer
from exact_titan.documents.limits import ExpansionError
from exact_titan.documents.listing import SourceFile, is_url, list_local, list_url
from exact_titan.documents.readers import READERS, Reader
from exact_titan.documents.remote import EXTRAS, copied
from exact_titan.documents.streams import BROKEN, CompressionError, DigestedFile
from exact_titan.documents.token_files import SUFFIXES as TOKEN_SUFFIXES
from exact_titan.errors import InputError


class Source:
    """A file, or a folder with all its subfolders. The files are sorted by their relative names.

    Args:
        path: the file or folder, or its URL (``s3://``, ``gs://``, ``hf://datasets/``, …: the schemes of fsspec).
        text_key: key (column) of the text in files that are not plain text.
        pattern: shell pattern of the relative names of a folder's files (``data/train-*``). The source has only the
            files that match the pattern.

    Attributes:
        name: last part of the path.
        files: the files.
        passed_over: number of files of the folder that are not read, by reason.

    Raises:
        InputError: if the path does not exist, cannot be listed, or has no file of a readable kind, or if a file of the
            folder can never be read.
    """

    def __init__(self, path: str | Path, text_key: str, pattern: str | None = None) -> None:
        self.path = str(path)
        self.text_key = text_key
        if is_url(self.path):
            self.name = self.path.rstrip("/").rpartition("/")[2]
            listing = list_url(self.path, pattern)
        else:
            self.name = Path(path).resolve().name if Path(path).name in ("", "..") else Path(path).name
            listing = list_local(Path(path), pattern)
        self._root, self.files, self.passed_over = listing.root, listing.files, listing.passed_over
        self.is_folder = not self.files or self.files[0].name != ""
        if not self.is_folder:
            self.files = [SourceFile(self.name, file.bytes, file.version) for file in self.files]
            if kind_of(self.name.partition("?")[0]) is None:
                kinds = f"{KINDS}; {', '.join(TOKEN_SUFFIXES)}"
                raise InputError(f"source {path}: not a file of a readable kind ({kinds})")
        if not self.files:
            kinds = KINDS + (f", {pattern}" if pattern is not None else "")
            others = ", ".join(f"{number} {reason}" for reason, number in self.passed_over.items())
            passed_over = f": passed over {others}" if others else ""
            raise InputError(f"source {path}: the folder has no file of a readable kind ({kinds}){passed_over}")

    def shown(self, file: SourceFile) -> str:
        """Return the name of the file for messages."""
        return f"{self.path.rstrip('/')}/{file.name}" if self.is_folder else self.path

    def location(self, file: SourceFile) -> str:
        """Return the path of the file."""
        return f"{self._root}/{file.name}" if self.is_folder else self._root

    def place(self, file: SourceFile) -> str:
        """Return a text that is equal for all names, spellings and links of the file.

        Raises:
            InputError: if the file is gone.
        """
        if is_url(self.path):
            scheme = self.path.partition("://")[0]
            return f"{EXTRAS.get(scheme, scheme)}://{self.location(file)}"
        return place_of(Path(self.location(file)))

    def leave_out(self, files: Sequence[SourceFile], reason: str) -> None:
        """Do not read these files, and count the files with the reason."""
        self.files = [file for file in self.files if file not in files]
        self.passed_over = {**self.passed_over, reason: len(files)}

    @contextmanager
    def open(self, file: SourceFile) -> Iterator["DocumentReader"]:
        """Open a file. A file at a URL is copied to the local disk until the context ends.

        Raises:
            InputError: if the file cannot be copied.
        """
        with ExitStack() as stack:
            local = Path(self.location(file))
            if is_url(self.path):
                name = file.name.rpartition("/")[2].partition("?")[0]
                local = stack.enter_context(copied(self.path, self.location(file), name, self.shown(file), file.bytes))
            yield DocumentReader(local, file.name, self.shown(file), self.text_key)


def place_of(file: Path) -> str:
    """Return a text that is equal for all names and links of a local file.

    Raises:
        InputError: if the file is gone.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return f"{found.st_dev}:{found.st_ino}"


class DocumentReader:
    """The documents of one local file.

    Args:
        file: path of the file.
        name: name of the file in its digest.
        shown: name of the file in messages.
        text_key: key (column) of the text in files that are not plain text.

    Attributes:
        no_text: number of documents without text so far.
    """

    def __init__(self, file: Path, name: str, shown: str, text_key: str) -> None:
        self._file, self._name, self._shown, self._text_key = file, name, shown, text_key
        self._bytes: DigestedFile | None = None
        self._reader: Reader | None = None
        self._read_all = False
        self.no_text = 0

    def texts(self) -> Iterator[str]:
        """Yield the text of every document with text, in the order of the file.

        Raises:
            InputError: if the file cannot be read. The error names the file, and the line or row if the file has some.
        """
        with self._opened() as reader:
            for number, value in reader.values():
                if isinstance(value, str):
                    if value and not value.isspace():
                        yield value
                    else:
                        self.no_text += 1
                elif value is None:
                    self.no_text += 1
                else:
                    raise InputError(
                        f"{self._shown}, {reader.unit} {number}: {self._text_key!r} is {type(value).__name__}, not "
                        "text: see --text-key"
                    )
            self.no_text += reader.left_out

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of every row, such as ``line 17``, and the contents of the row, in the order of the file.

        Raises:
            InputError: in the cases of :meth:`texts`; also if the file is plain text.
        """
        with self._opened() as reader:
            for number, row in reader.rows():
                yield f"{reader.unit} {number}", row

    @contextmanager
    def _opened(self) -> Iterator[Reader]:
        """Open the file. Convert every error of the file to an :class:`InputError` of one line."""
        kind = kind_of(self._file.name)
        assert kind is not None
        try:
            refuse_pointer(self._file, self._shown)
            self._bytes = DigestedFile(self._file)
            self._reader = READERS[kind.format](self._bytes, self._file, kind, self._shown, self._text_key)
            yield self._reader
            self._read_all = True
        except (*BROKEN, zlib.error) as error:
            raise InputError(
                f"{self._shown} is broken or cut short ({error}): download or compress it again"
            ) from error
        except CompressionError as error:
            raise InputError(f"{self._shown} {error}") from error
        except ExpansionError as error:
            raise InputError(
                f"{self._shown} expands too far: {error}: if the file is what you expect, divide it into smaller files"
            ) from error
        except MemoryError as error:
            raise InputError(
                f"{self._shown}: there is not enough memory to read its documents: divide the largest documents, or "
                "pack on a machine with more memory"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._shown} is not UTF-8 ({error.reason} at byte {error.start}): convert it to UTF-8"
            ) from error
        except (OSError, pyarrow.ArrowException) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            if isinstance(error, OSError) and error.errno is not None:
                raise InputError(f"{self._shown} cannot be read: {error.strerror or why}") from error
            if kind.compression:  # bz2
                raise InputError(
                    f"{self._shown} is broken or cut short ({why}): download or compress it again"
                ) from error
            raise InputError(
                f"{self._shown} is not a whole {kind.format.strip('.')} file ({why}): write it again"
            ) from error

    @property
    def progress(self) -> float:
        """Share of the file that has been read so far, from 0 to 1."""
        return 1.0 if self._read_all else self._reader.progress if self._reader is not None else 0.0

    def digest(self) -> FileDigest:
        """Return size and digest of the whole file. After :meth:`texts`, the method reads only the rest of the file.

        Raises:
            InputError: if the file cannot be read.
        """
        try:
            read = self._bytes or DigestedFile(self._file)
            return FileDigest(self._name, read.size, read.sha256())
        except OSError as error:
            raise InputError(f"{self._shown} cannot be read: {error.strerror or error}") from error
