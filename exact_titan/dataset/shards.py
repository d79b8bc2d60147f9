"""A shard on the disk: token ids once and flat, and the windows as segments into them.

The file is safetensors, so any tool can open it, with these tensors (T stored tokens, S segments, N windows)::

    tokens           [T]    uint16 or uint32   the ids of the documents, in the order of the segments
    segment_start    [S]    int64              first token of a segment
    segment_length   [S]    int32              inputs of a segment; it uses one token more, the last label
    window_segments  [N+1]  int64              window k holds the segments window_segments[k] … window_segments[k+1]-1

A token is stored once, except where a document is cut and its next part is not the next segment of the shard: the token
at the cut is then stored twice, as the last label of one part and the first input of the other.

It is written and mapped here and not by the safetensors library: the bytes, and with them the dataset's fingerprint,
must not change with that library's version, nor may writing or reading copy a shard.
"""

import hashlib
import json
import mmap
from pathlib import Path

import numpy as np

from exact_titan.errors import InputError

# Widest elements first: every tensor is then aligned to its element.
TENSORS = ("segment_start", "window_segments", "segment_length", "tokens")
DTYPES = {"I64": np.int64, "I32": np.int32, "U16": np.uint16, "U32": np.uint32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALLOWED = {"segment_start": ("I64",), "window_segments": ("I64",), "segment_length": ("I32",), "tokens": ("U16", "U32")}


def write_shard(file: Path, arrays: dict[str, np.ndarray]) -> tuple[int, str]:
    """Write the four one-dimensional arrays; returns the file's size in bytes and its sha256 (hex)."""
    header: dict[str, dict] = {}
    offset = 0
    for name in TENSORS:
        array = arrays[name]
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
        for part in [*parts, *(arrays[name].data for name in TENSORS)]:
            digest.update(part)
            out.write(part)
    return 8 + len(text) + offset, digest.hexdigest()


class Shard:
    """A shard mapped into memory: its four tensors as read-only numpy arrays that live on the page cache.

    Raises:
        InputError: if the file is not such a shard.
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
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} is not a shard of a packed dataset ({error}): pack it again") from error

    def _array(self, header: dict, name: str, base: int) -> np.ndarray:
        entry = header[name]
        if entry["dtype"] not in ALLOWED[name] or len(entry["shape"]) != 1:
            raise ValueError(f"tensor {name} is {entry['dtype']} {entry['shape']}")
        return np.frombuffer(self._map, DTYPES[entry["dtype"]], entry["shape"][0], base + entry["data_offsets"][0])
