"""The bytes of a file: with a digest of the whole file, and decompressed in steps of bounded size."""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from exact_titan.documents import limits

BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)
"""The errors of broken or shortened compressed files. ``bz2`` raises an OSError without a number instead."""

_STARTS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ"),
}
_START_BYTES = 10

# 2 KiB of a zstd frame expand to at most 64 MiB: a block has at least 4 bytes, and expands to at most 128 KiB.
_ZSTD_STEP = 2**11


class CompressionError(Exception):
    """A file has another compression than the suffix of its name."""


def compression_of(stream: io.BufferedReader) -> str:
    """Return the suffix of the compression that a file has by its first bytes. Empty: no known compression."""
    start = stream.peek(_START_BYTES)
    return next((suffix for suffix, known in _STARTS.items() if known.match(start)), "")


class DigestedFile(io.RawIOBase):
    """A file that is read from its start. Every read adds to the digest.

    Attributes:
        size: bytes of the file.
        done: bytes that have been read so far.
        is_regular: False for a named pipe.

    Raises:
        OSError: if the file cannot be opened, is a device or a socket, or is a named pipe and no program writes to the
            pipe within :data:`~exact_titan.documents.limits.PIPE_SECONDS`.
    """

    def __init__(self, file: Path) -> None:
        # O_NONBLOCK: the opening of a named pipe would wait for a program that writes.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if (why := why_not_readable(found)) is not None:
            os.close(descriptor)
            raise OSError(errno.EINVAL, why)
        self._stream = os.fdopen(descriptor, "rb", buffering=0)
        self._digest = hashlib.sha256()
        self.size = found.st_size
        self.done = 0
        self.is_regular = stat.S_ISREG(found.st_mode)
        self._has_writer = self.is_regular
        os.set_blocking(descriptor, True)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._stream.readinto(buffer) if self._has_writer else self._first_of_pipe(buffer)
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

    def _first_of_pipe(self, buffer: Any) -> int:
        """Read the first bytes of a pipe. If a program has opened the pipe, wait for the program without a limit."""
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        has_written = poll.poll(limits.PIPE_SECONDS * 1000)
        os.set_blocking(self._stream.fileno(), False)
        size = self._stream.readinto(buffer)  # None: a program has opened the pipe. 0: no program has, or it has ended.
        os.set_blocking(self._stream.fileno(), True)
        if size == 0 and not has_written:
            raise OSError(
                errno.EINVAL, f"no program writes to this pipe, after {limits.PIPE_SECONDS} s: start the program"
            )
        self._has_writer = True
        return self._stream.readinto(buffer) if size is None else size


def why_not_readable(found: os.stat_result) -> str | None:
    """Return why a path is no source, or None for a regular file and a named pipe."""
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    for is_kind, name in kinds:
        if is_kind(found.st_mode):
            return f"{name} is not a file: name a file"
    return None


def decompressed(stream: DigestedFile, compression: str) -> io.BufferedReader:
    """Return the decompressed bytes of a file. Memory holds at most the window of the file and 64 MiB.

    A read of the result raises :class:`~exact_titan.documents.limits.ExpansionError` if the file expands too far.

    Raises:
        CompressionError: if the file begins as JSON, or with another compression.

    Args:
        stream: the file.
        compression: one of :data:`~exact_titan.documents.file_kinds.COMPRESSIONS`, or empty.
    """
    compressed: Any = io.BufferedReader(stream, 2**18)
    if not compression:
        return compressed
    if (other := compression_of(compressed)) not in ("", compression):
        raise CompressionError(f"is a {other} file: end its name with {other} instead of {compression}")
    if compressed.peek(1)[:1] in (b"{", b"["):
        # A browser or a server may decompress a file and keep its name.
        raise CompressionError(f"is JSON without compression: take {compression} from the end of its name")
    expanded: Any = gzip.GzipFile(fileobj=compressed) if compression == ".gz" else _Frames(compressed, compression)
    return io.BufferedReader(_Expanded(expanded, stream), 2**20)


class _Expanded(io.RawIOBase):
    """Decompressed bytes, with a check of their number."""

    def __init__(self, expanded: Any, stream: DigestedFile) -> None:
        self._expanded, self._stream = expanded, stream
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._expanded.readinto(buffer)
        self._done += size
        limits.check_expansion(self._done, self._stream.done)
        return size


class _ZstdFrame:
    """A decompressor of one zstd frame, with the interface of ``bz2.BZ2Decompressor``.

    A step returns at most 64 MiB, because the step reads 2 KiB.
    """

    def __init__(self) -> None:
        # zstd refuses windows above 128 MiB by default. Dumps are often compressed with `zstd --long=31`.
        self._frame = zstandard.ZstdDecompressor(max_window_size=limits.WINDOW_BYTES).decompressobj()
        self._rest = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def needs_input(self) -> bool:
        return not self._rest

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data + bytes(self._rest)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        rest = memoryview(data) if data else self._rest
        self._rest = rest[_ZSTD_STEP:]
        return self._frame.decompress(rest[:_ZSTD_STEP])


def _xz_frame() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=limits.WINDOW_BYTES + 2**20)


_FRAMES: dict[str, Callable[[], Any]] = {
    ".zst": _ZstdFrame,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": _xz_frame,
}


class _Frames(io.RawIOBase):
    """Decompresses all frames of a file, one after another.

    fsspec would stop after the first zstd frame, and would not notice that a file is cut short. The files of the
    standard library limit neither the memory of ``.xz`` nor know zstd.
    """

    def __init__(self, stream: io.BufferedReader, compression: str) -> None:
        self._stream, self._new_frame = stream, _FRAMES[compression]
        self._name = compression.strip(".")
        self._frame = self._new_frame()
        self._frame_open, self._is_first = False, True
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = b""
            if self._frame.eof:
                block = self._frame.unused_data
                self._frame = self._new_frame()
                self._frame_open, self._is_first = False, False
            if not block and self._frame.needs_input:
                block = self._stream.read(2**17)
                if not block:
                    if self._frame_open:
                        raise EOFError(f"the last {self._name} frame has no end")
                    return 0
            if not self._frame_open and not self._is_first:
                # Zeros may follow a frame: the padding of .xz, and of tapes.
                block = block.lstrip(b"\0")
                if not block:
                    continue
            self._frame_open = True
            self._ready = memoryview(self._frame.decompress(block, len(buffer)))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
