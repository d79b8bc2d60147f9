"""Read the documents of token files that Megatron-LM or datatrove wrote. These documents need no tokenizing.

Megatron-LM (megatron/core/datasets/indexed_dataset.py): ``NAME.bin`` holds the ids of all sequences, flat. ``NAME.idx``
holds the starts of the documents. A document is one or more sequences. ``NAME.idx`` of n sequences and d documents,
little-endian::

    magic                      9 bytes  MMIDIDX, two zero bytes
    version                    uint64   1
    dtype code                 uint8    dtype of the ids, see MEGATRON_DTYPES
    n, d+1                     uint64   two counts
    sequence_lengths   [n]     int32    number of ids of a sequence
    sequence_pointers  [n]     int64    first byte of a sequence in NAME.bin
    document_indices   [d+1]   int64    first sequence of a document; the first entry is 0, the last entry is n
    sequence_modes     [n]     int8     multimodal data only; refused

datatrove (src/datatrove/pipeline/tokens/tokenizer.py, TokenizedFile), d documents with T ids in total::

    NAME.ds         [T]  uint16 or uint32   the ids, flat
    NAME.ds.index   [d]  uint64             end of a document, counted in ids
    NAME.ds.loss    [T]  bool               optional mask of the loss; refused

The width of the ids in ``NAME.ds`` follows from the size of ``NAME.ds`` and from T, the last entry of the index. In
both formats, a document ends with an end-of-text id only if the tokenizing run asked for the id (Megatron-LM
``--append-eod``, datatrove ``eos_token``).
"""

import hashlib
import mmap
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.git_lfs import refuse_pointer
from exact_titan.errors import InputError

SUFFIXES = (".bin", ".idx", ".ds")
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_VERSION = 1
# The codes 6 (float64) and 7 (float32) are no types of ids.
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")
# Number of index entries that are processed together. Memory does not grow with the index.
_BLOCK = 2**16


def is_token_file(path: Path) -> bool:
    """Return whether the path has the suffix of a token file.

    The suffixes are ``.bin`` and ``.idx`` (Megatron-LM) and ``.ds`` (datatrove).
    """
    return path.suffix in SUFFIXES and not path.is_dir()


def open_token_file(path: Path) -> "TokenFile":
    """Open and check a token file. ``path`` may name either file of a Megatron-LM pair.

    Raises:
        InputError: if a file is missing or cannot be read, the index has another format, the index is inconsistent or
            does not fit the size of the ids' file, or the file has no token. :class:`MegatronFile` and
            :class:`DatatroveFile` list the other cases.
    """
    return DatatroveFile(path) if path.suffix == ".ds" else MegatronFile(path)


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
        for start in range(first, last, _BLOCK):
            borders = self._borders(index, start, min(start + _BLOCK, last))
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
        for start in range(0, len(self), _BLOCK):
            stop = min(start + _BLOCK, len(self))
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


class MegatronFile(TokenFile):
    """A pair ``NAME.bin`` and ``NAME.idx`` of Megatron-LM. The reader joins the sequences of a document.

    Args:
        path: either file of the pair.

    Raises:
        InputError: in the cases of :func:`open_token_file`; also if the version is another version, the ids are not
            integers, the data are multimodal, or the sequences do not follow one another in the order of the index.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.with_suffix(".bin"), path.with_suffix(".idx"))

    def _check(self, index: np.ndarray, data_bytes: int) -> int:
        header = index[: _HEADER.size].tobytes()
        if not header.startswith(MEGATRON_MAGIC):
            raise InputError(
                f"source {self.path}: {self.index.name} is not an index of Megatron-LM (it does not begin with "
                "MMIDIDX): give a pair that its tools/preprocess_data.py wrote"
            )
        if len(header) < _HEADER.size:
            raise self._broken(f"cut short after {len(header)} bytes")
        _, version, code, self._sequences, borders = _HEADER.unpack(header)
        if version != MEGATRON_VERSION:
            raise InputError(
                f"source {self.path}: {self.index.name} has version {version}, this version of exact_titan reads "
                f"{MEGATRON_VERSION}: write the pair again with a Megatron-LM that writes version {MEGATRON_VERSION}"
            )
        if code not in MEGATRON_DTYPES:
            known = ", ".join(f"{number} {np.dtype(name)}" for number, name in MEGATRON_DTYPES.items())
            raise InputError(
                f"source {self.path}: {self.index.name} has dtype code {code}, which is no integer type ({known}): "
                "write the pair again with one of these types"
            )
        self.dtype = np.dtype(MEGATRON_DTYPES[code])
        size = _HEADER.size + 12 * self._sequences + 8 * borders
        if self._sequences and len(index) == size + self._sequences:
            raise InputError(
                f"source {self.path}: {self.index.name} has sequence modes, the data are multimodal: give a pair of "
                "text only"
            )
        if len(index) != size:
            raise self._broken(f"it has {len(index)} bytes, its counts say {size}")
        self._check_documents(self._document_indices(index))
        data_end = self._check_sequences(index)
        if data_end != data_bytes:
            raise self._does_not_fit(f"{data_end}", data_bytes)
        self.tokens = data_bytes // self.dtype.itemsize
        return borders - 1

    def _check_documents(self, document_indices: np.ndarray) -> None:
        if not len(document_indices) or document_indices[0] != 0 or document_indices[-1] != self._sequences:
            raise self._broken(f"its documents do not cover its {self._sequences} sequences")
        if (document := _first_fall(document_indices)) is not None:
            raise self._broken(f"document {document + 1} begins after its end")

    def _check_sequences(self, index: np.ndarray) -> int:
        """Check that every sequence begins at the end of the sequence before. Return the bytes of all sequences."""
        lengths = self._part(index, 0, "<i4")
        pointers = self._sequence_pointers(index)
        end = 0
        for start in range(0, self._sequences, _BLOCK):
            length_bytes = lengths[start : start + _BLOCK].astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(length_bytes)
            wrong = np.flatnonzero((length_bytes < 0) | (pointers[start : start + _BLOCK] != ends - length_bytes))
            if len(wrong):
                sequence = start + int(wrong[0])
                raise self._broken(f"sequence {sequence + 1} does not begin where the sequence before it ends")
            end = int(ends[-1])
        return end

    def _borders(self, index: np.ndarray, first: int, last: int) -> np.ndarray:
        sequences = self._document_indices(index)[first : last + 1]
        borders = np.full(len(sequences), self.tokens)
        inside = sequences < self._sequences
        borders[inside] = self._sequence_pointers(index)[sequences[inside]] // self.dtype.itemsize
        return borders

    def _sequence_pointers(self, index: np.ndarray) -> np.ndarray:
        return self._part(index, 4 * self._sequences, "<i8")

    def _document_indices(self, index: np.ndarray) -> np.ndarray:
        return index[_HEADER.size + 12 * self._sequences :].view("<i8")

    def _part(self, index: np.ndarray, offset: int, dtype: str) -> np.ndarray:
        """Return an array of the index with one entry per sequence, ``offset`` bytes after the header."""
        start = _HEADER.size + offset
        return index[start : start + self._sequences * np.dtype(dtype).itemsize].view(dtype)


class DatatroveFile(TokenFile):
    """A file ``NAME.ds`` of datatrove with its ``NAME.ds.index``.

    Args:
        path: the file ``NAME.ds``.

    Raises:
        InputError: in the cases of :func:`open_token_file`; also if the file has a loss mask, because a packed dataset
            cannot hold a loss mask.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, path, path.with_name(f"{path.name}.index"))
        mask = path.with_name(f"{path.name}.loss")
        if mask.exists():
            raise InputError(
                f"source {path}: {mask.name} masks the loss, which a packed dataset cannot hold: move it to another "
                f"folder to train on all tokens"
            )

    def _check(self, index: np.ndarray, data_bytes: int) -> int:
        if len(index) % 8:
            raise self._broken(f"it has {len(index)} bytes, no multiple of 8")
        ends = index.view("<u8")
        if (document := _first_fall(ends)) is not None:
            raise self._broken(f"document {document + 2} ends before it begins")
        self.tokens = int(ends[-1]) if len(ends) else 0
        for width in (2, 4):
            if data_bytes == self.tokens * width:
                self.dtype = np.dtype(f"<u{width}")
                return len(ends)
        raise self._does_not_fit(f"{self.tokens} ids of 2 or 4", data_bytes)

    def _borders(self, index: np.ndarray, first: int, last: int) -> np.ndarray:
        ends = index.view("<u8")
        return ends[first - 1 : last] if first else np.append(np.zeros(1, ends.dtype), ends[:last])


def ended_documents(
    file: TokenFile,
    *,
    eos_id: int,
    vocab_size: int,
    dtype: np.dtype,
    first: int = 0,
    last: int | None = None,
    split_at_eos: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the documents for the packer: the ids of the file, and the end-of-text id as the last id.

    Args:
        file: the token file.
        eos_id: the end-of-text id. A document that does not end with this id gets the id at its end.
        vocab_size: the highest id of the tokenizer, + 1.
        dtype: dtype of the arrays. The dtype can hold every id of the tokenizer.
        first: the first document, from 0.
        last: the last document + 1 (default: all documents).
        split_at_eos: whether a document also ends at every end-of-text id inside it.

    Yields:
        ``dtype`` ``[m]``, m >= 1. The array may be a read-only view.

    Raises:
        InputError: if the tokenizer does not have an id. The error names file, document and id.
    """
    for number, ids_m in enumerate(file.read(first, last), first + 1):
        if len(ids_m) and (ids_m.min() < 0 or ids_m.max() >= vocab_size):
            wrong = ids_m[(ids_m < 0) | (ids_m >= vocab_size)][0]
            raise InputError(
                f"{file.data}, document {number} of {len(file)}: id {wrong} is not among the tokenizer's {vocab_size} "
                "ids: give the --tokenizer that made the file"
            )
        document_m = ids_m.astype(dtype, copy=False)
        ends = (np.flatnonzero(document_m[:-1] == eos_id) + 1).tolist() if split_at_eos else []
        for begin, end in pairwise([0, *ends, len(document_m)]):
            yield _ended(document_m[begin:end], eos_id)


def ids_inside(document_m: np.ndarray, eos_id: int) -> int:
    """Return the number of end-of-text ids inside a document. A tokenizer may begin a document with the same id."""
    return int(np.count_nonzero(document_m[1:-1] == eos_id))


def _ended(document_m: np.ndarray, eos_id: int) -> np.ndarray:
    if len(document_m) and document_m[-1] == eos_id:
        return document_m
    return np.append(document_m, np.array(eos_id, document_m.dtype))


def _mapped(file: Path) -> np.ndarray:
    """Return the bytes of the file as a read-only uint8 array. The array maps the page cache."""
    try:
        with file.open("rb") as stream:
            if not file.stat().st_size:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _first_fall(values: np.ndarray) -> int | None:
    """Return the first k with ``values[k] > values[k + 1]``, or None."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK + 1]
        falls = np.flatnonzero(block[:-1] > block[1:])
        if len(falls):
            return start + int(falls[0])
    return None
