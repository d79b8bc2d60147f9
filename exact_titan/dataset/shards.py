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

import numpy as np

from exact_titan.errors import InputError

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
        InputError: if the file is not a shard.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            try:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                size = int.from_bytes(self._map[:8], "little")
                header = json.loads(self._map[8 : 8 + size])
                self.tokens = self._array(header, "tokens", 8 + size)
                self.segment_start = self._array(header, "segment_start", 8 + size)
                self.segment_length = self._array(header, "segment_length", 8 + size)
                self.window_segments = self._array(header, "window_segments", 8 + size)
                self.segment_unsupervised = (
                    self._array(header, "segment_unsupervised", 8 + size) if "segment_unsupervised" in header else None
                )
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} is not a shard of a packed dataset ({error}): pack the dataset again"
                ) from error

    def _array(self, header: dict, name: str, base: int) -> np.ndarray:
        entry = header[name]
        if entry["dtype"] not in ALLOWED[name] or len(entry["shape"]) != 1:
            raise ValueError(f"tensor {name} is {entry['dtype']} {entry['shape']}")
        return np.frombuffer(self._map, DTYPES[entry["dtype"]], entry["shape"][0], base + entry["data_offsets"][0])
