"""One split's windows on the way to the disk: segments in, closed shards out."""

from pathlib import Path

import numpy as np
import torch

from exact_titan.data.manifest import ShardRecord, SplitRecord
from exact_titan.data.shards import write_shard
from exact_titan.exposure import Buckets


class SplitWriter:
    """Packs documents end to end and cuts them at window borders (policy ``concat``).

    A segment of n inputs uses n+1 tokens. A document cut at a border goes on in the next window from the token that
    was the last label, so that each of its tokens but the last is an input exactly once. Shards are closed at a
    window border once they hold ``shard_tokens``; a document that reaches over it has its border token in both. Memory
    is therefore bounded whatever the length of the corpus.

    Another policy is another class with the same ``add`` and ``finish``.

    Args:
        folder: where the shards go.
        split: their name's first part.
        window: inputs per window.
        dtype: of the token ids.
        shard_tokens: stored tokens after which a shard is closed.
    """

    def __init__(self, folder: Path, split: str, window: int, dtype: np.dtype, shard_tokens: int) -> None:
        self._folder, self._split, self._window, self._shard_tokens = folder, split, window, shard_tokens
        self._buckets = Buckets(window)
        self._counts = torch.zeros(len(self._buckets), dtype=torch.int64)
        self._documents = 0
        self._inputs = 0
        self._shards: list[ShardRecord] = []
        # Past the limit a shard grows by one window at most: its inputs, and a last label for each of its segments.
        self._tokens = np.empty(shard_tokens + 2 * window, dtype=dtype)
        self._in_window = 0
        self._start_shard()

    def add(self, document_m: np.ndarray) -> None:
        """Pack a document of m >= 2 tokens."""
        self._documents += 1
        inputs = len(document_m) - 1
        done = 0
        stored = 0  # first token of the document that the current shard lacks
        while done < inputs:
            n = min(self._window - self._in_window, inputs - done)
            fresh = document_m[stored : done + n + 1]
            self._tokens[self._stored : self._stored + len(fresh)] = fresh
            self._stored += len(fresh)
            stored = done + n + 1
            self._start.append(self._stored - n - 1)
            self._length.append(n)
            done += n
            self._in_window += n
            if self._in_window == self._window:
                self._close_window()
                if self._stored >= self._shard_tokens:
                    self._close_shard()
                    stored = done

    def finish(self) -> SplitRecord | None:
        """Write what is left and give the split's part of the manifest; None if there is no window."""
        padding = 0
        if self._in_window:
            padding = self._window - self._in_window
            self._close_window()
        if len(self._borders) > 1:
            self._close_shard()
        if not self._shards:
            return None
        return SplitRecord(
            windows=sum(shard.windows for shard in self._shards),
            tokens=self._inputs,
            targets=self._inputs,
            padding=padding,
            documents=self._documents,
            bucket_counts=self._counts.tolist(),
            shards=self._shards,
        )

    def _start_shard(self) -> None:
        self._stored = 0
        self._start: list[int] = []
        self._length: list[int] = []
        self._borders = [0]

    def _close_window(self) -> None:
        self._borders.append(len(self._length))
        self._in_window = 0

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
