"""A file of token ids with an index of its documents: the part that all formats share."""

import hashlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.git_lfs import refuse_pointer
from exact_titan.errors import InputError

_BLOCK = 2**16
"""Number of index entries that are processed together. Memory does not grow with the index."""


class TokenFile(ABC):
    """The documents of a file of ids and its index. ``len()`` is the number of documents.

    Only :meth:`read` keeps files open, because a corpus may have more token files than a process may open.

    Args:
        path: the path for messages, as the user wrote the path.
        data: the file of the ids.
        index: the file of the index.

    Attributes:
        name: name of the file of the ids.
        files: the two files.
        bytes: size of both files together.
        dtype: dtype of the ids in the file.
        tokens: number of ids in the file.
    """

    dtype: np.dtype
    tokens: int

    def __init__(self, path: Path, data: Path, index: Path) -> None:
        self.path, self.data, self.index = path, data, index
        self.name = data.name
        self.files = [data, index]
        missing = [file for file in self.files if not file.is_file()]
        if len(missing) == 2:
            raise InputError(f"source {path}: no such file")
        if missing:
            raise InputError(f"source {path}: there is no {missing[0]}: the two files belong together, copy both files")
        for file in self.files:
            refuse_pointer(file, f"source {self.path}: {file.name}")
        self.bytes = sum(file.stat().st_size for file in self.files)
        self._documents = self._check(_mapped(index), data.stat().st_size)
        if not self.tokens:
            raise InputError(f"source {path}: it holds no token, leave it out")

    def __len__(self) -> int:
        return self._documents

    def digests(self) -> list[FileDigest]:
        """Return name, size and digest of both files, sorted by name."""
        digests = []
        for file in sorted(self.files):
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            digests.append(FileDigest(file.name, file.stat().st_size, sha256))
        return digests

    def read(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Yield the ids of the documents ``first … last - 1`` (default: all): ``dtype`` ``[m]``, m >= 0.

        The arrays are read-only views of the mapped file. A start in the middle of the file therefore costs nothing.
        """
        ids = _mapped(self.data).view(self.dtype)
        index = _mapped(self.index)
        last = len(self) if last is None else last
        for start, stop in blocks(first, last):
            borders = self._borders(index, start, stop)
            for begin, end in pairwise(borders.tolist()):
                yield ids[begin:end]

    def ranges(self, size: int) -> list[tuple[int, int, int]]:
        """Divide the documents, in their order, into ranges of about ``size`` bytes of ids.

        Returns:
            (first document, last document + 1, bytes of ids) of each range.
        """
        index = _mapped(self.index)
        ranges, first, begin = [], 0, 0
        ids = max(1, size // self.dtype.itemsize)
        for start, stop in blocks(0, len(self)):
            end_D = self._borders(index, start, stop)[1:]
            while (k := int(np.searchsorted(end_D, begin + ids))) < len(end_D):
                ranges.append((first, start + k + 1, (int(end_D[k]) - begin) * self.dtype.itemsize))
                first, begin = start + k + 1, int(end_D[k])
        if first < len(self):
            ranges.append((first, len(self), (self.tokens - begin) * self.dtype.itemsize))
        return ranges

    def check_width(self, eos_id: int) -> None:
        """Check that the ids of the file can have the end-of-text id of the tokenizer.

        Raises:
            InputError: if the type of the ids is too small. Another tokenizer made the file.
        """
        if eos_id > np.iinfo(self.dtype).max:
            raise InputError(
                f"source {self.path}: its ids are {self.dtype.name}, and the tokenizer's end-of-text id {eos_id} does "
                "not fit: give the --tokenizer that made the file, or name its end-of-text token with --eos-token"
            )

    @abstractmethod
    def _check(self, index: np.ndarray, data_bytes: int) -> int:
        """Check the index (uint8) and the size of the data. Set dtype and tokens. Return the number of documents."""

    @abstractmethod
    def _borders(self, index: np.ndarray, first: int, last: int) -> np.ndarray:
        """Return the first id of each of the documents ``first … last - 1``, and the end of the last document."""

    def _does_not_fit(self, index_says: str, data_bytes: int) -> InputError:
        return InputError(
            f"source {self.path}: {self.data.name} has {data_bytes} bytes, its index says {index_says}: one file is "
            "cut short or belongs to another pair, copy both files again"
        )

    def _broken(self, why: str) -> InputError:
        return InputError(f"source {self.path}: the index {self.index.name} is broken ({why}): copy or write it again")


def _mapped(file: Path) -> np.ndarray:
    """Return the bytes of the file as a read-only uint8 array. The array maps the page cache."""
    try:
        with file.open("rb") as stream:
            if not file.stat().st_size:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield the first entry and the last entry + 1 of each block of ``first … last - 1``. A block bounds the memory."""
    for start in range(first, last, _BLOCK):
        yield start, min(start + _BLOCK, last)


def first_fall(values: np.ndarray) -> int | None:
    """Return the first k with ``values[k] > values[k + 1]``, or None."""
    for start, stop in blocks(0, len(values)):
        block = values[start : stop + 1]
        falls = np.flatnonzero(block[:-1] > block[1:])
        if len(falls):
            return start + int(falls[0])
    return None
