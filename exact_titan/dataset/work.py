"""The attention work of a split's windows, ``<split>-work.bin``. A run balances its steps without opening the shards.

The *attention work* of a window is the sum of its squared segment lengths: the number of query-key pairs without a
causal mask. Padding counts as a segment.

The file has one section for every shard, in the order of the shards:

1. the attention work of the shard's windows, little-endian int64 ``[windows]``;
2. a sha256 (32 bytes) over the ASCII text ``WINDOW SHA256 `` and the numbers: the window length, and the
   sha256 of the shard in the manifest, in hexadecimal.

The manifest says where every section is. A section fits one shard only, so a damaged file and the file of another
dataset are found. The fingerprint does not cover the file, because the shards determine the numbers. The file is
optional: datasets of older versions have no such file, and a reader can compute the numbers from the shards.

``append`` keeps the sections and adds new sections at the end. After an interrupted ``append``, a file has additional
sections that the manifest does not have.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from exact_titan.dataset.files import check_file
from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.dataset.records import ShardRecord
from exact_titan.dataset.shards import Shard
from exact_titan.errors import InputError
from exact_titan.system.atomic_files import partial_of, publish

DIGEST_BYTES = 32
_DIGEST_NUMBERS = DIGEST_BYTES // 8
"""A digest takes the space of four numbers. The whole file is therefore one array of int64."""


def work_file(folder: Path, split: str) -> Path:
    """Return the path of the attention work of a split in a packed dataset."""
    return folder / f"{split}-work.bin"


def work_of_shard(shard: Shard, window: int) -> np.ndarray:
    """Return the attention work of all windows of a shard, int64 ``[windows]``.

    Args:
        shard: a shard.
        window: inputs per window.

    Raises:
        ValueError: if the segments of a window are impossible (:meth:`Shard.check_segments`).
    """
    shard.check_segments(window)
    length_S, first_N = shard.segment_length.astype(np.int64), shard.window_segments[:-1]
    padding_N = window - np.add.reduceat(length_S, first_N)
    return np.add.reduceat(length_S**2, first_N) + padding_N**2


def compute_work(folder: Path, shards: Sequence[ShardRecord], window: int) -> np.ndarray:
    """Return the attention work of all windows of some shards of a dataset, int64 ``[windows]``. Open every shard once.

    Raises:
        InputError: if a shard cannot be read, or its windows are not possible windows.
    """
    work = []
    for shard in shards:
        file = folder / shard.file
        try:
            work.append(work_of_shard(Shard(file), window))
        except (IndexError, ValueError) as error:
            raise InputError(f"the windows of {file} are broken ({error}): {AGAIN}") from error
        if len(work[-1]) != shard.windows:
            raise InputError(f"{file} has {len(work[-1])} windows, the manifest says {shard.windows}: {AGAIN}")
    return np.concatenate([np.empty(0, dtype=np.int64), *work])


def section(work_N: np.ndarray, shard: ShardRecord, window: int) -> bytes:
    """Return the section of a shard with this attention work."""
    numbers = np.ascontiguousarray(work_N, dtype="<i8").tobytes()
    return numbers + _digest(numbers, shard, window)


def write_work(folder: Path, split: str, shards: Sequence[ShardRecord], window: int) -> None:
    """Write the attention work of a split in one step.

    The function keeps the sections of an existing file that fit their shards, and reads the segments of all other
    shards. All shards are in the folder. The manifest need not exist yet.

    Raises:
        InputError: in the cases of :func:`compute_work`.
        OSError: if the file cannot be written.
    """
    file = work_file(folder, split)
    new = partial_of(file)
    try:
        with new.open("wb") as out:
            for shard, kept in zip(shards, _kept(file, shards, window), strict=True):
                out.write(kept or section(compute_work(folder, [shard], window), shard, window))
        publish(new, file)
    finally:
        new.unlink(missing_ok=True)


class AttentionWork:
    """The attention work of every window of a split. ``work[window_N]`` is int64 ``[N]``.

    Args:
        shards: the split's shards.
        numbers: one work for every window, int64 ``[windows]``.
        file: the file of the numbers. The numbers then have the digests of the sections between them.
    """

    def __init__(self, shards: Sequence[ShardRecord], numbers: np.ndarray, *, file: Path | None = None) -> None:
        self.file = file
        self._numbers = numbers
        self._ends = np.array(list(accumulate(shard.windows for shard in shards)), dtype=np.int64)

    def __getitem__(self, window_N: np.ndarray) -> np.ndarray:
        """Return the attention work of windows of the split, int64 ``[N]``. ``window_N`` is int64 ``[N]``."""
        if self.file is not None:
            window_N = window_N + _DIGEST_NUMBERS * np.searchsorted(self._ends, window_N, side="right")
        return self._numbers[window_N].astype(np.int64)

    @classmethod
    def open(cls, folder: Path, split: str, shards: Sequence[ShardRecord], window: int) -> "AttentionWork | None":
        """Map the file of a split into memory, and check all digests. Return None if the dataset has no file.

        Raises:
            InputError: if the file cannot be read, is shorter than the manifest says, is damaged, or belongs to other
                shards.
        """
        content = _manifest_part(folder, split, shards)
        if content is None:
            return None
        file = work_file(folder, split)
        for shard, found in zip(shards, _sections(content, shards), strict=True):
            if not _fits(found, shard, window):
                raise wrong_work(file, f"the numbers of {shard.file} do not fit their digest")
        return cls(shards, np.frombuffer(content, "<i8"), file=file)


def written_sections(folder: Path, split: str, shards: Sequence[ShardRecord]) -> Iterator[memoryview] | None:
    """Return the sections of the shards in the file of a split, unchecked. Return None if the dataset has no file.

    Raises:
        InputError: if the file cannot be read, or is shorter than the manifest says.
    """
    content = _manifest_part(folder, split, shards)
    return None if content is None else _sections(content, shards)


def wrong_work(file: Path, what: str) -> InputError:
    """Return the error about a file whose numbers are not the numbers of the shards."""
    return InputError(f"{file}: {what}, so the file is damaged or belongs to another dataset: {_way_out(file)}")


def _way_out(file: Path) -> str:
    return f"remove {file.name}, and a run reads the numbers from the shards at its start"


def _digest(numbers: bytes | memoryview, shard: ShardRecord, window: int) -> bytes:
    digest = hashlib.sha256(f"{window} {shard.sha256} ".encode())
    digest.update(numbers)
    return digest.digest()


def _fits(found: memoryview, shard: ShardRecord, window: int) -> bool:
    return _digest(found[:-DIGEST_BYTES], shard, window) == found[-DIGEST_BYTES:]


def _section_bytes(shard: ShardRecord) -> int:
    return 8 * shard.windows + DIGEST_BYTES


def _sections(content: memoryview, shards: Sequence[ShardRecord]) -> Iterator[memoryview]:
    """Yield the sections of the shards. The content may be too short: a section is then shorter, or empty."""
    begin = 0
    for shard in shards:
        yield content[begin : (begin := begin + _section_bytes(shard))]


def _kept(file: Path, shards: Sequence[ShardRecord], window: int) -> Iterator[memoryview | None]:
    """Yield the section of each shard in an existing file. None: the file has no section that fits the shard."""
    size = check_file(file) if os.path.lexists(file) else 0
    content = _mapped(file, size) if size else memoryview(b"")
    for shard, found in zip(shards, _sections(content, shards), strict=True):
        yield found if len(found) == _section_bytes(shard) and _fits(found, shard, window) else None


def _manifest_part(folder: Path, split: str, shards: Sequence[ShardRecord]) -> memoryview | None:
    """Map the sections of the shards in the manifest into memory. Return None if the dataset has no file."""
    file, needed = work_file(folder, split), sum(map(_section_bytes, shards))
    if not os.path.lexists(file):
        return None
    if (found := check_file(file)) < needed:
        raise InputError(
            f"{file} is cut short or older than the manifest: it has {found} bytes, and the windows of the manifest "
            f"need {needed}: {_way_out(file)}"
        )
    return _mapped(file, needed)


def _mapped(file: Path, size: int) -> memoryview:
    """Map the first ``size`` bytes of a file into memory."""
    try:
        with file.open("rb") as stream:
            return memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # the file has become shorter
        raise InputError(f"{file} cannot be read: {error}: {_way_out(file)}") from error
