"""Token files of Megatron-LM.

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
"""

import struct
from pathlib import Path

import numpy as np

from exact_titan.documents.token_file_base import TokenFile, blocks, first_fall
from exact_titan.errors import InputError

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_VERSION = 1
# The codes 6 (float64) and 7 (float32) are no types of ids.
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")


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
        if (document := first_fall(document_indices)) is not None:
            raise self._broken(f"document {document + 1} begins after its end")

    def _check_sequences(self, index: np.ndarray) -> int:
        """Check that every sequence begins at the end of the sequence before. Return the bytes of all sequences."""
        lengths = self._part(index, 0, "<i4")
        pointers = self._sequence_pointers(index)
        end = 0
        for start, stop in blocks(0, self._sequences):
            length_bytes = lengths[start:stop].astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(length_bytes)
            wrong = np.flatnonzero((length_bytes < 0) | (pointers[start:stop] != ends - length_bytes))
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
