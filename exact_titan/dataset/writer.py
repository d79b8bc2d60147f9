"""Write the windows of one split: take documents, write shards."""

from array import array
from pathlib import Path

import numpy as np
import torch

from exact_titan.dataset.lengths import LengthWriter, lengths_file, unsupervised_file
from exact_titan.dataset.manifest_checks import shard_name
from exact_titan.dataset.policies import POLICIES, Segment
from exact_titan.dataset.records import ShardRecord, SplitRecord
from exact_titan.dataset.shards import write_shard
from exact_titan.exposure import Buckets


class SplitWriter:
    """Lays documents into windows with a policy, stores the windows, and counts the numbers of the manifest.

    If a segment continues the document of the segment stored before, the two segments share one stored token: the last
    label of the first segment is the first input of the second segment. All other tokens are stored once. A shard is
    closed at the first window border at which the shard has ``shard_tokens`` tokens or more. Memory holds one shard,
    and the tokens of documents that the policy has not yet assigned to windows.

    Args:
        folder: folder of the shards.
        split: name of the split, the first part of the shards' names.
        window: inputs per window.
        dtype: dtype of the token ids.
        shard_tokens: minimum number of stored tokens of a closed shard. Only the last shard may have fewer.
        policy: one of :data:`~exact_titan.dataset.policies.POLICIES`.
        masked: whether the dataset has labels without a loss (format 3).
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        window: int,
        dtype: np.dtype,
        shard_tokens: int,
        policy: str = "concat",
        *,
        masked: bool = False,
    ) -> None:
        self._folder, self._split, self._window, self._shard_tokens = folder, split, window, shard_tokens
        self._policy = POLICIES[policy](window)
        self._lengths = LengthWriter(lengths_file(folder, split))
        self._unsupervised = LengthWriter(unsupervised_file(folder, split)) if masked else None
        self._buckets = Buckets(window)
        self._counts = torch.zeros(len(self._buckets), dtype=torch.int64)
        self._documents = 0
        self._inputs = self._targets = 0
        self._shards: list[ShardRecord] = []
        # By document: the tokens from the first input that is in no window yet, and the number of labels without a loss
        # among these inputs.
        self._waiting: dict[int, tuple[np.ndarray, int]] = {}
        # A shard exceeds the limit by one window at most: its inputs, and one last label for each of its segments.
        self._tokens = np.empty(shard_tokens + 2 * window, dtype=dtype)
        self._start_shard()

    def add(self, document_m: np.ndarray, unsupervised: int = 0) -> None:
        """Pack a document of m >= 2 tokens. Do not change the array: the writer keeps the array for later windows.

        Args:
            document_m: the tokens.
            unsupervised: number of first labels without a loss, less than m - 1. 0 if the dataset is not masked.
        """
        number = self._documents
        self._documents += 1
        self._lengths.add(len(document_m))
        if self._unsupervised is not None:
            self._unsupervised.add(unsupervised)
        self._waiting[number] = (document_m, unsupervised)
        for window in self._policy.add(len(document_m) - 1):
            self._store(window)
        rest_m, unsupervised = self._waiting.get(number, (document_m, 0))
        if len(rest_m) < len(document_m):
            # A view would keep the whole document in memory.
            self._waiting[number] = (rest_m.copy(), unsupervised)

    def finish(self) -> SplitRecord | None:
        """Write the remaining windows, and return the split's part of the manifest. Return None without a window."""
        for window in self._policy.finish():
            self._store(window)
        if len(self._borders) > 1:
            self._close_shard()
        if not self._shards:
            return None
        self._lengths.flush()
        if self._unsupervised is not None:
            self._unsupervised.flush()
        windows = sum(shard.windows for shard in self._shards)
        return SplitRecord(
            windows=windows,
            tokens=self._inputs,
            targets=self._targets,
            padding=windows * self._window - self._inputs,
            documents=self._documents,
            bucket_counts=self._counts.tolist(),
            shards=self._shards,
            parts=[self._documents],
        )

    def _start_shard(self) -> None:
        self._stored = 0
        self._start = array("q")
        self._length = array("i")
        self._masked = array("i")
        self._borders = [0]
        self._stored_last = -1  # the document of the token that was stored last

    def _store(self, window: list[Segment]) -> None:
        for document, _, n in window:
            waiting_m, unsupervised = self._waiting.pop(document)
            if len(waiting_m) > n + 1:
                self._waiting[document] = (waiting_m[n:], max(0, unsupervised - n))
            fresh = waiting_m[int(document == self._stored_last) : n + 1]
            self._tokens[self._stored : self._stored + len(fresh)] = fresh
            self._stored += len(fresh)
            self._stored_last = document
            self._start.append(self._stored - n - 1)
            self._length.append(n)
            self._masked.append(min(n, unsupervised))
        self._borders.append(len(self._length))
        if self._stored >= self._shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        length_S, masked_S = (np.array(numbers, dtype=np.int32) for numbers in (self._length, self._masked))
        counts_n = self._buckets.count_segments(torch.from_numpy(length_S), torch.from_numpy(masked_S))
        self._counts += counts_n
        self._inputs += int(length_S.sum(dtype=np.int64))
        self._targets += int(counts_n.sum())
        name = shard_name(self._split, len(self._shards))
        arrays = {
            "tokens": self._tokens[: self._stored],
            "segment_start": np.array(self._start, dtype=np.int64),
            "segment_length": length_S,
            "window_segments": np.array(self._borders, dtype=np.int64),
        }
        if self._unsupervised is not None:
            arrays["segment_unsupervised"] = masked_S
        size, sha256 = write_shard(self._folder / name, arrays)
        self._shards.append(
            ShardRecord(
                file=name,
                bytes=size,
                sha256=sha256,
                windows=len(self._borders) - 1,
                tokens=self._stored,
                segments=len(length_S),
            )
        )
        self._start_shard()
