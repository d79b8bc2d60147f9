"""FLOPs of a step and hours of a run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exact_titan.dataset.dataset import check_size, split_record
from exact_titan.dataset.manifest import Manifest
from exact_titan.dataset.shards import Shard
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.model.flops import attention_flops, attention_pairs

SHORT_DOCUMENT = 256
"""Tokens: documents this short are assumed for attention's padding where there is no dataset to ask."""


@dataclass(frozen=True)
class Windows:
    """What attention sees of the training windows: query-key pairs in the mean, and documents in the fullest one."""

    pairs: float
    documents: int
    source: str
    """The folders of the packed datasets; empty: none was there, each window is taken for one document."""

    @classmethod
    def of_dataset(cls, folder: Path, split: str) -> "Windows":
        """Of a packed dataset, from its segments. Padding is not counted as a document.

        Raises:
            InputError: if it is not a whole packed dataset.
        """
        manifest = Manifest.read(folder)
        record = split_record(manifest, split, folder)
        pairs = documents = 0
        for entry in record.shards:
            check_size(folder / entry.file, entry.bytes)
            shard = Shard(folder / entry.file)
            lengths, counts = np.unique(shard.segment_length, return_counts=True)
            pairs += sum(
                count * attention_pairs([n]) for n, count in zip(lengths.tolist(), counts.tolist(), strict=True)
            )
            documents = max(documents, int(np.diff(shard.window_segments).max()))
        return cls(pairs / record.windows, documents, str(folder))

    @classmethod
    def of_mixture(cls, mixture: Mixture, split: str) -> "Windows":
        """Of the datasets of a run, each by its share of the windows.

        Raises:
            InputError: if one is not a whole packed dataset.
        """
        ones = [cls.of_dataset(dataset.folder, split) for dataset in mixture.datasets]
        shares = mixture.shares.weights if mixture.shares else [len(dataset) for dataset in mixture.datasets]
        return cls(
            pairs=sum(share * one.pairs for share, one in zip(shares, ones, strict=True)) / sum(shares),
            documents=max(one.documents for one in ones),
            source=", ".join(one.source for one in ones),
        )

    @classmethod
    def unknown(cls, seq_len: int) -> "Windows":
        """Without a dataset: the most pairs a window can have, and many short documents."""
        return cls(attention_pairs([seq_len]), max(1, seq_len // SHORT_DOCUMENT), "")


@dataclass(frozen=True)
class ComputePlan:
    """Work of a run. FLOPs are those of the forward and backward pass, without recomputation."""

    steps: int
    tokens_per_step: int
    matmul_flops: float
    """Of a step, outside attention."""

    attention_flops: float
    """Of a step."""

    recomputed_flops: float
    """Of a step, done on top by activation checkpointing."""

    @property
    def flops_per_step(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.steps * self.tokens_per_step

    def seconds_per_step(self, *, nproc: int, peak_flops: float, mfu: float) -> float:
        """Time of a step on ``nproc`` GPUs of ``peak_flops`` FLOP/s each, of which they reach the share ``mfu``."""
        return self.flops_per_step / (nproc * peak_flops * mfu)


def plan_compute(
    *,
    steps: int,
    windows_per_step: int,
    seq_len: int,
    windows: Windows,
    flops_per_token: int,
    computed_flops_per_token: float,
    attention_forwards: int,
    shape: dict[str, int],
) -> ComputePlan:
    """FLOPs of a run.

    Args:
        windows_per_step: windows of an optimizer step, over all GPUs.
        flops_per_token: outside attention, as :func:`exact_titan.titan.model.flops.matmul_flops_per_token`.
        computed_flops_per_token: the same, recomputation included.
        attention_forwards: attention calls in the forward direction in a microbatch.
        shape: ``n_layers``, ``n_heads`` and ``head_dim``.
    """
    tokens = windows_per_step * seq_len
    attention = attention_flops(1, **shape) * windows.pairs * windows_per_step
    # A third of attention's FLOPs are those of its forward pass.
    repeated_attention = attention / 3 * (attention_forwards / shape["n_layers"] - 1)
    # The count takes the norms' weights for matrices, so that without recomputation the difference is just below 0.
    repeated_matmuls = max(0.0, computed_flops_per_token - flops_per_token) * tokens
    return ComputePlan(
        steps=steps,
        tokens_per_step=tokens,
        matmul_flops=float(flops_per_token * tokens),
        attention_flops=attention,
        recomputed_flops=repeated_matmuls + repeated_attention,
    )
