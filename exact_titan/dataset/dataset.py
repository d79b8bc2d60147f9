"""Read the windows of a packed dataset in any order."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from exact_titan.dataset.files import check_size
from exact_titan.dataset.manifest import Manifest
from exact_titan.dataset.manifest_checks import check_shard_numbers
from exact_titan.dataset.records import ShardRecord, SplitRecord
from exact_titan.dataset.shards import Shard
from exact_titan.dataset.work import AttentionWork
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets

NO_LABEL = -100
ALL = slice(None)
"""All shards of a split."""


class PackedDataset:
    """The windows of one split of a packed dataset (``exact-titan pack``). The shards are mapped into memory.

    The cost of a window does not depend on the number of its documents, because all operations are vectorised over the
    window. A window of 16384 tokens takes about 50 µs, with one document or with three hundred documents.

    Args:
        folder: the packed dataset.
        split: ``train`` or ``val``.
        manifest: the folder's manifest, if the caller has read it already.
        checked: the shards whose files are checked. Several processes of a machine can divide the shards.

    Attributes:
        folder, split: the arguments.
        manifest: the manifest of the dataset (:class:`Manifest`).
        record: the split's part of the manifest.
        window: inputs per window (L).
        buckets: the buckets of a window of L inputs.
        counts: the split's supervised targets per bucket, int64 ``[len(buckets)]``.

    Raises:
        InputError: if the folder is not a packed dataset, the dataset has no such split, a shard is missing or lies
            outside the folder, or the size of a shard is not the size in the manifest or is too small for its windows.
            The class does not check the contents of the shards: ``exact-titan verify`` checks the contents.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        split: str = "train",
        *,
        manifest: Manifest | None = None,
        checked: slice = ALL,
    ) -> None:
        self.folder, self.split = Path(folder), split
        self.manifest = manifest or Manifest.read(self.folder)
        self.record = split_record(self.manifest, split, self.folder)
        token_bytes = np.dtype(self.manifest.token_dtype).itemsize
        for shard in self.record.shards[checked]:
            check_size(self.folder / shard.file, shard.bytes)
        for shard in self.record.shards:
            check_shard_numbers(self.folder / shard.file, shard, token_bytes)
        self.window = self.manifest.window
        self.buckets = Buckets(self.window)
        self.counts = torch.tensor(self.record.bucket_counts, dtype=torch.int64)
        self._first_windows = np.array([0, *accumulate(shard.windows for shard in self.record.shards)], dtype=np.int64)

    def __len__(self) -> int:
        return self.record.windows

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Return window ``k``: the tensors ``input``, ``labels``, ``positions`` and ``cu_seqlens``.

        ``input``, ``labels`` and ``positions`` are int64 ``[L]``. ``cu_seqlens`` is int32 ``[n+1]``. :meth:`read`
        describes the contents.

        Raises:
            IndexError: if ``k`` is not in ``0 … len(self) - 1``.
        """
        # Three separate tensors: a caller that keeps one tensor does not keep the memory of the others.
        input_L, labels_L, positions_L = (torch.empty(self.window, dtype=torch.int64) for _ in range(3))
        cu_seqlens = self.read(k, input_L.numpy(), labels_L.numpy(), positions_L.numpy())
        return {
            "input": input_L,
            "labels": labels_L,
            "positions": positions_L,
            "cu_seqlens": torch.from_numpy(cu_seqlens),
        }

    def read(self, k: int, input_L: np.ndarray, labels_L: np.ndarray, positions_L: np.ndarray) -> np.ndarray:
        """Fill the caller's arrays with window ``k``.

        Args:
            k: the window, ``0 … len(self) - 1``.
            input_L: int64, receives the input tokens. Padding receives 0.
            labels_L: int64, receives the token after each input in the same document. Padding, and the unsupervised
                labels of a dataset of instructions, receive -100.
            positions_L: int64, receives the index of each input in its visible document segment, from 0.

        Returns:
            ``cu_seqlens``, int32 ``[n+1]``: the borders of the n segments, from 0 to L. Padding is a separate segment
            at the end.

        Raises:
            IndexError: if ``k`` is out of range.
            ValueError: if the shard is broken: the segments of the window are impossible in a window.
        """
        shard, start_S, length_S, unsupervised_S = self._locate(k)

        end_S = np.cumsum(length_S, dtype=np.int64)
        n = int(end_S[-1])
        position_n = positions_L[:n]
        np.subtract(self._arange_L[:n], np.repeat(end_S - length_S, length_S), out=position_n)
        index_n = np.repeat(start_S, length_S)
        index_n += position_n
        input_L[:n] = shard.tokens.take(index_n)
        # The label is the next input, except at the end of a segment.
        labels_L[: n - 1] = input_L[1:n]
        labels_L[end_S - 1] = shard.tokens.take(start_S + length_S)
        if unsupervised_S is not None:
            labels_L[:n][position_n < np.repeat(unsupervised_S, length_S)] = NO_LABEL

        padded = n < self.window
        if padded:
            input_L[n:] = 0
            labels_L[n:] = NO_LABEL
            positions_L[n:] = self._arange_L[: self.window - n]
        cu_seqlens = np.zeros(len(end_S) + 1 + padded, dtype=np.int32)
        cu_seqlens[1 : len(end_S) + 1] = end_S
        cu_seqlens[-1] = self.window
        return cu_seqlens

    def segment_lengths(self, k: int) -> np.ndarray:
        """Return the number of inputs of each segment of window ``k``, int32 ``[S]``. The method reads no tokens.

        Raises:
            IndexError, ValueError: in the cases of :meth:`read`.
        """
        return self._locate(k)[2]

    def joint_counts(self) -> torch.Tensor:
        """Return the supervised targets per bucket of effective context and bucket of packed position.

        The packed position of a target is its index in the window plus 1. The method reads the segments of all windows
        and no tokens.

        Returns:
            int64 ``[n, n]`` for n buckets. The sums of the rows are :attr:`counts`.

        Raises:
            InputError: if the segments of a shard do not give the counts in the manifest.
        """
        return self.sum_joint_counts(map(self.joint_counts_of, self.record.shards))

    def joint_counts_of(self, entry: ShardRecord) -> torch.Tensor:
        """Return the part of :meth:`joint_counts` of one shard of :attr:`record`, int64 ``[n, n]``.

        Raises:
            InputError: if the segments of the shard are broken.
        """
        try:
            shard = _OPEN_SHARDS.get(self.folder / entry.file, entry.sha256)
            shard.check_segments(self.window)
            length_S = np.asarray(shard.segment_length, dtype=np.int64)
            start_S = np.cumsum(length_S) - length_S
            first_N = shard.window_segments[:-1]
            offset_S = start_S - np.repeat(start_S[first_N], np.diff(shard.window_segments))
            return self.buckets.count_joint(
                torch.from_numpy(length_S),
                torch.from_numpy(offset_S),
                None if shard.segment_unsupervised is None else torch.tensor(shard.segment_unsupervised),
            )
        except (IndexError, ValueError) as error:
            raise self._other_segments() from error

    def sum_joint_counts(self, of_shards: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return :meth:`joint_counts` from the parts of all shards, int64 ``[n, n]``.

        Raises:
            InputError: if the parts do not give the counts in the manifest.
        """
        joint_nn = torch.zeros(len(self.buckets), len(self.buckets), dtype=torch.int64)
        for part_nn in of_shards:
            joint_nn += part_nn
        if not torch.equal(joint_nn.sum(1), self.counts):
            raise self._other_segments()
        return joint_nn

    def _other_segments(self) -> InputError:
        return InputError(
            f"the segments of {self.folder} are not the segments of its manifest: `exact-titan verify {self.folder}` "
            f"says what is wrong, copy the dataset again or pack it again"
        )

    def _locate(self, k: int) -> tuple[Shard, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the shard of window ``k``, and starts, lengths and unsupervised labels of the window's segments."""
        if not 0 <= k < len(self):
            raise IndexError(f"window {k} of {self.folder}: the dataset has windows 0 … {len(self) - 1}")
        number = int(np.searchsorted(self._first_windows, k, side="right")) - 1
        entry = self.record.shards[number]
        shard = _OPEN_SHARDS.get(self.folder / entry.file, entry.sha256)
        return shard, *shard.segments(k - int(self._first_windows[number]), self.window)

    @cached_property
    def work(self) -> AttentionWork | None:
        """The attention work of the windows (:mod:`exact_titan.dataset.work`). None: the dataset has no such file.

        Raises:
            InputError: if the file is damaged.
        """
        return AttentionWork.open(self.folder, self.split, self.record.shards, self.window)

    @cached_property
    def _arange_L(self) -> np.ndarray:
        return np.arange(self.window, dtype=np.int64)


class _OpenShards:
    """A cache of the mapped shards of all datasets of this process. The cache keeps the most recently used shards.

    Every mapped shard holds a file descriptor. A process may have 1024 file descriptors by default, and a dataset may
    have many thousand shards. Mapping a shard again costs about as much as reading a window.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shards: OrderedDict[tuple[Path, str], Shard] = OrderedDict()

    def get(self, file: Path, sha256: str) -> Shard:
        """Return the shard in a file. The digest in the manifest distinguishes the shard from an older file."""
        key = (file, sha256)
        shard = self._shards.get(key)
        if shard is None:
            shard = self._shards[key] = Shard(file)
            if len(self._shards) > self._most:
                self._shards.popitem(last=False)
        else:
            self._shards.move_to_end(key)
        return shard


_OPEN_SHARDS = _OpenShards(256)


def split_record(manifest: Manifest, split: str, folder: Path) -> SplitRecord:
    """Return the split's part of the manifest.

    Raises:
        InputError: if the manifest has no such split. The error names the existing splits.
    """
    if split not in manifest.splits:
        raise InputError(f"{folder} has no split {split!r}: choose one of {', '.join(sorted(manifest.splits))}")
    return manifest.splits[split]


@contextmanager
def reading_window(dataset: PackedDataset, k: int) -> Iterator[None]:
    """Convert the errors of a broken shard during the reading of window ``k`` to an :class:`InputError` of one line.

    Raises:
        InputError: if the window's segments are broken. The error names the window.
    """
    try:
        yield
    except InputError:
        raise
    except (IndexError, ValueError, MemoryError) as error:
        raise _broken(dataset, k, str(error)) from error


def check_ids(dataset: PackedDataset, k: int, input_L: np.ndarray, labels_L: np.ndarray) -> None:
    """Check that the dataset's tokenizer has all token ids of a window.

    Without the check, the embedding layer would fail later, without the name of the window.

    Raises:
        InputError: if the tokenizer does not have an id. The error names the window.
    """
    vocab_size = dataset.manifest.tokenizer.vocab_size
    highest = max(int(input_L.max()), int(labels_L.max()))
    if highest >= vocab_size:
        raise _broken(dataset, k, f"it has the token id {highest}, and its tokenizer has {vocab_size} ids")


def _broken(dataset: PackedDataset, k: int, why: str) -> InputError:
    return InputError(
        f"window {k} of {dataset.folder} is broken ({why}): `exact-titan verify {dataset.folder}` says what is "
        "wrong, copy the dataset again or pack it again"
    )
