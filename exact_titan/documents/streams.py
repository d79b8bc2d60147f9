"""The bytes of a file: with a digest of the whole file, and decompressed."""

import bz2
import gzip
import hashlib
import io
import lzma
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)
"""The errors of broken or shortened compressed files. ``bz2`` raises an OSError without a number instead."""


class DigestedFile(io.RawIOBase):
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


def decompressed(stream: DigestedFile, compression: str) -> io.BufferedReader:
    """Return the decompressed bytes of a file.

    Args:
        stream: the file.
        compression: one of :data:`~exact_titan.documents.file_kinds.COMPRESSIONS`, or empty.
    """
    compressed: Any = io.BufferedReader(stream, 2**18)
    openers: dict[str, Any] = {".gz": _gzip, ".zst": _ZstdStream, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    return io.BufferedReader(openers[compression](compressed), 2**20) if compression else compressed


def _gzip(stream: BinaryIO) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=stream)


class _ZstdStream(io.RawIOBase):
    """Decompresses all zstd frames of a file.

    fsspec would stop after the first frame, and would not notice that a file is cut short.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._frame = self._new_frame()
        self._frame_open = False
        self._ready = memoryview(b"")

    @staticmethod
    def _new_frame() -> Any:
        # zstd refuses windows above 128 MiB by default. Dumps are often compressed with `zstd --long=31`.
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = self._new_frame()
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
