"""A shard on the disk: a flat array of token ids, and the windows as segments of the array.

The file is a safetensors file. Any safetensors tool can open the file. A shard of T stored tokens, S segments and N
windows has these tensors::

    tokens                [T]    uint16, uint32  the ids of the documents, in the order of the segments
    segment_start         [S]    int64           first token of a segment
    segment_length        [S]    int32           inputs of a segment; a segment uses one more token, the last label
    window_segments       [N+1]  int64           the first segment of every window, and the number of segments
    segment_unsupervised  [S]    int32           only in format 3: number of a segment's first labels without a loss

A token is stored once, with one exception. If a document is cut and the next segment of the document is not the next
segment of the shard, the token at the cut is stored twice: as the last label of one segment and as the first input of
the other segment.

This module writes and maps the file without the safetensors library, for two reasons. The bytes of a shard, and
therefore the dataset's fingerprint, must not change with the version of the library. Writing and reading must not copy
a shard.
"""

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.errors import InputError
from exact_titan.system.json_files import parse_json

# The tensors with the widest elements come first. Every tensor is then aligned to the size of its elements.
TENSORS = ("segment_start", "window_segments", "segment_length", "segment_unsupervised", "tokens")
DTYPES = {"I64": np.int64, "I32": np.int32, "U16": np.uint16, "U32": np.uint32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALLOWED = {
    "segment_start": ("I64",),
    "window_segments": ("I64",),
    "segment_length": ("I32",),
    "segment_unsupervised": ("I32",),
    "tokens": ("U16", "U32"),
}
MOST_HEADER = 2**16
"""Bytes of the longest header. A header of five tensors has about 400 bytes."""


def write_shard(file: Path, arrays: dict[str, np.ndarray]) -> tuple[int, str]:
    """Write the one-dimensional arrays. Return the file's size in bytes and its sha256 (hex).

    ``arrays`` has all tensors of the module's table, or all without ``segment_unsupervised``.
    """
    header: dict[str, dict] = {}
    offset = 0
    names = [name for name in TENSORS if name in arrays]
    for name in names:
        array = arrays[name]
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
        for part in [*parts, *(arrays[name].data for name in names)]:
            digest.update(part)
            out.write(part)
    return 8 + len(text) + offset, digest.hexdigest()


class Shard:
    """A shard mapped into memory. Its tensors are read-only numpy arrays that map the page cache.

    ``segment_unsupervised`` is None if the file has no such tensor: all labels are then supervised.

    Raises:
        InputError: if the file cannot be read or is not a shard: the header is not the header of a shard, a tensor does
            not lie within the file, or the tensors of the segments have different lengths. :meth:`segments` and
            :meth:`check_segments` check the values.
    """

    def __init__(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(self._map[:8], "little")
            if size > min(MOST_HEADER, len(self._map) - 8):
                raise ValueError(f"its header has {size} bytes, and the file has {len(self._map)}")
            self._base = 8 + size
            header = parse_json(self._map[8 : self._base])
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            self.tokens = self._array(header, "tokens")
            self.segment_start = self._array(header, "segment_start")
            self.segment_length = self._array(header, "segment_length")
            self.window_segments = self._array(header, "window_segments")
            self.segment_unsupervised = (
                self._array(header, "segment_unsupervised") if "segment_unsupervised" in header else None
            )
            of_segments = (self.segment_start, self.segment_length, self.segment_unsupervised)
            if len({len(array) for array in of_segments if array is not None}) > 1:
                raise ValueError("the tensors of its segments have different lengths")
        except OSError as error:
            raise InputError(f"shard {file} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"{file} is not a shard of a packed dataset ({error}): {AGAIN}") from error

    def segments(self, k: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return starts (int64), lengths and unsupervised labels (int32) of the segments of the shard's window ``k``.

        The values are checked. A caller may therefore allocate arrays of these lengths and index the tokens.

        Raises:
            ValueError: if the shard has no such window, or the segments are impossible in a window of ``window`` inputs
                or lie outside the tokens.
        """
        border_2 = self.window_segments[k : k + 2].tolist()
        if len(border_2) != 2 or not 0 <= border_2[0] < border_2[1] <= len(self.segment_length):
            raise ValueError(f"its shard has no segments {' … '.join(map(str, border_2))}")
        inside = slice(*border_2)
        length_S = self.segment_length[inside]
        if length_S.min() < 1 or length_S.sum(dtype=np.int64) > window:
            raise ValueError(f"its shard has segments that do not fit into a window of {window}")
        unsupervised_S = None if self.segment_unsupervised is None else self.segment_unsupervised[inside]
        self._check(self.segment_start[inside], length_S, unsupervised_S)
        return self.segment_start[inside], length_S, unsupervised_S

    def check_segments(self, window: int) -> None:
        """Check the segments of all windows. The method reads no tokens.

        Raises:
            ValueError: as in :meth:`segments`.
        """
        border_N = self.window_segments
        if len(border_N) < 2 or border_N[0] != 0 or border_N[-1] != len(self.segment_length):
            raise ValueError("the windows of its shard do not have all segments")
        if (border_N[1:] <= border_N[:-1]).any():
            raise ValueError("its shard has a window without a segment")
        length_S = self.segment_length.astype(np.int64)
        if length_S.min() < 1 or np.add.reduceat(length_S, border_N[:-1]).max() > window:
            raise ValueError(f"its shard has segments that do not fit into a window of {window}")
        self._check(self.segment_start, length_S, self.segment_unsupervised)

    def _check(self, start_S: np.ndarray, length_S: np.ndarray, unsupervised_S: np.ndarray | None) -> None:
        # A negative index would read other tokens without an error. The second comparison keeps the sum inside int64.
        tokens = len(self.tokens)
        if start_S.min() < 0 or start_S.max() >= tokens or (start_S + length_S).max() >= tokens:
            raise ValueError(f"its shard has segments outside its {tokens} tokens")
        if unsupervised_S is not None and (unsupervised_S.min() < 0 or (unsupervised_S > length_S).any()):
            raise ValueError("its shard has segments with more labels without a loss than labels")

    def _array(self, header: dict[str, Any], name: str) -> np.ndarray:
        entry = header.get(name)
        match entry:
            case {"dtype": str(dtype), "shape": [int(n)], "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise ValueError(f"tensor {name} is {entry!r:.80}")
        if dtype not in ALLOWED[name]:
            raise ValueError(f"tensor {name} is {dtype!r:.20}")
        if not 0 <= begin <= end <= len(self._map) - self._base or end - begin != n * np.dtype(DTYPES[dtype]).itemsize:
            raise ValueError(f"tensor {name} does not lie within the file: {entry!r:.80}")
        return np.frombuffer(self._map, DTYPES[dtype], n, self._base + begin)
