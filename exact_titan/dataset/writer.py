"""Write the windows of one split: take documents, write shards."""

from array import array
from pathlib import Path

import numpy as np
import torch

from exact_titan.dataset.lengths import LengthWriter, lengths_file
from exact_titan.dataset.manifest import ShardRecord, SplitRecord
from exact_titan.dataset.policies import POLICIES, Segment
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
    """

    def __init__(
        self, folder: Path, split: str, window: int, dtype: np.dtype, shard_tokens: int, policy: str = "concat"
    ) -> None:
        self._folder, self._split, self._window, self._shard_tokens = folder, split, window, shard_tokens
        self._policy = POLICIES[policy](window)
        self._lengths = LengthWriter(lengths_file(folder, split))
        self._buckets = Buckets(window)
        self._counts = torch.zeros(len(self._buckets), dtype=torch.int64)
        self._documents = 0
        self._inputs = 0
        self._shards: list[ShardRecord] = []
        # By document: the tokens from the first input that is in no window yet.
        self._waiting: dict[int, np.ndarray] = {}
        # A shard exceeds the limit by one window at most: its inputs, and one last label for each of its segments.
        self._tokens = np.empty(shard_tokens + 2 * window, dtype=dtype)
        self._start_shard()

    def add(self, document_m: np.ndarray) -> None:
        """Pack a document of m >= 2 tokens. Do not change the array: the writer keeps the array for later windows."""
        number = self._documents
        self._documents += 1
        self._lengths.add(len(document_m))
        self._waiting[number] = document_m
        for window in self._policy.add(len(document_m) - 1):
            self._store(window)
        rest_m = self._waiting.get(number)
        if rest_m is not None and len(rest_m) < len(document_m):
            # A view would keep the whole document in memory.
            self._waiting[number] = rest_m.copy()

    def finish(self) -> SplitRecord | None:
        """Write the remaining windows, and return the split's part of the manifest. Return None without a window."""
        for window in self._policy.finish():
            self._store(window)
        if len(self._borders) > 1:
            self._close_shard()
        if not self._shards:
            return None
        self._lengths.flush()
        windows = sum(shard.windows for shard in self._shards)
        return SplitRecord(
            windows=windows,
            tokens=self._inputs,
            targets=self._inputs,
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
        self._borders = [0]
        self._stored_last = -1  # the document of the token that was stored last

    def _store(self, window: list[Segment]) -> None:
        for document, _, n in window:
            waiting_m = self._waiting.pop(document)
            if len(waiting_m) > n + 1:
                self._waiting[document] = waiting_m[n:]
            fresh = waiting_m[int(document == self._stored_last) : n + 1]
            self._tokens[self._stored : self._stored + len(fresh)] = fresh
            self._stored += len(fresh)
            self._stored_last = document
            self._start.append(self._stored - n - 1)
            self._length.append(n)
        self._borders.append(len(self._length))
        if self._stored >= self._shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        length_S = np.array(self._length, dtype=np.int32)
        self._counts += self._buckets.count_segments(torch.from_numpy(length_S))
        self._inputs += int(length_S.sum(dtype=np.int64))
        name = f"{self._split}-{len(self._shards):05d}.safetensors"
        arrays = {
            "tokens": self._tokens[: self._stored],
            "segment_start": np.array(self._start, dtype=np.int64),
            "segment_length": length_S,
            "window_segments": np.array(self._borders, dtype=np.int64),
        }
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
