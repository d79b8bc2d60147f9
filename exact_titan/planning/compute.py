"""The FLOPs of a step and the hours of a run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exact_titan.dataset.dataset import split_record
from exact_titan.dataset.files import check_size
from exact_titan.dataset.manifest import Manifest
from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.dataset.shards import Shard
from exact_titan.errors import InputError
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.model.flops import attention_flops, attention_pairs

SHORT_DOCUMENT = 256
"""Tokens of a document. Without a dataset the plan assumes documents of this length for the padding of attention."""


@dataclass(frozen=True)
class Windows:
    """The numbers of the training windows that decide the cost of attention."""

    pairs: float
    """Query-key pairs of a window, the mean over all windows."""

    documents: int
    """Documents in the window with the most documents."""

    source: str
    """Folders of the packed datasets. Empty without a dataset: each window then counts as one document."""

    @classmethod
    def of_dataset(cls, folder: Path, split: str) -> "Windows":
        """Return the numbers of a packed dataset, from its segments. Padding does not count as a document.

        Raises:
            InputError: if the folder is not a complete packed dataset, or a shard is broken.
        """
        manifest = Manifest.read(folder)
        record = split_record(manifest, split, folder)
        pairs = documents = 0
        for entry in record.shards:
            check_size(folder / entry.file, entry.bytes)
            shard = Shard(folder / entry.file)
            try:
                shard.check_segments(manifest.window)
            except ValueError as error:
                raise InputError(f"shard {folder / entry.file} is broken ({error}): {AGAIN}") from error
            lengths, counts = np.unique(shard.segment_length, return_counts=True)
            pairs += sum(
                count * attention_pairs([n]) for n, count in zip(lengths.tolist(), counts.tolist(), strict=True)
            )
            documents = max(documents, int(np.diff(shard.window_segments).max()))
        return cls(pairs / record.windows, documents, str(folder))

    @classmethod
    def of_mixture(cls, mixture: Mixture, split: str) -> "Windows":
        """Return the numbers of a mixture. Each dataset counts by its share of the windows.

        Raises:
            InputError: if one folder is not a complete packed dataset.
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
        """Return the numbers without a dataset: the largest number of pairs in a window, and many short documents."""
        return cls(attention_pairs([seq_len]), max(1, seq_len // SHORT_DOCUMENT), "")


@dataclass(frozen=True)
class ComputePlan:
    """The work of a run. FLOPs are the FLOPs of the forward and backward pass, without recomputation."""

    steps: int
    tokens_per_step: int
    matmul_flops: float
    """FLOPs of a step outside attention."""

    attention_flops: float
    """FLOPs of attention in a step."""

    recomputed_flops: float
    """Additional FLOPs of a step that activation checkpointing causes."""

    @property
    def flops_per_step(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def tokens(self) -> int:
        """Tokens of the complete run."""
        return self.steps * self.tokens_per_step

    def seconds_per_step(self, *, nproc: int, peak_flops: float, mfu: float) -> float:
        """Return the time of a step on ``nproc`` GPUs. Each GPU reaches the share ``mfu`` of ``peak_flops`` FLOP/s."""
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
    """Return the FLOPs of a run.

    Args:
        steps: optimizer steps of the run.
        windows_per_step: windows of an optimizer step, over all GPUs.
        seq_len: tokens of a window.
        windows: the documents of the windows.
        flops_per_token: FLOPs outside attention, from :func:`exact_titan.titan.model.flops.matmul_flops_per_token`.
        computed_flops_per_token: the same FLOPs with recomputation.
        attention_forwards: forward calls of attention in a microbatch.
        shape: ``n_layers``, ``n_heads`` and ``head_dim``.
    """
    tokens = windows_per_step * seq_len
    attention = attention_flops(1, **shape) * windows.pairs * windows_per_step
    # The forward pass has a third of attention's FLOPs.
    repeated_attention = attention / 3 * (attention_forwards / shape["n_layers"] - 1)
    # flops_per_token counts the weights of the norms as matrices. Without recomputation the difference is therefore
    # slightly below 0.
    repeated_matmuls = max(0.0, computed_flops_per_token - flops_per_token) * tokens
    return ComputePlan(
        steps=steps,
        tokens_per_step=tokens,
        matmul_flops=float(flops_per_token * tokens),
        attention_flops=attention,
        recomputed_flops=repeated_matmuls + repeated_attention,
    )
