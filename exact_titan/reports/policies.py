"""Compare the packing policies on the same documents. The comparison needs only the lengths of the documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from exact_titan.dataset.lengths import lengths_file, read_lengths, read_unsupervised, unsupervised_of_segments
from exact_titan.dataset.manifest import Manifest
from exact_titan.dataset.policies import POLICIES, lay_out
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.reports.exposure import ExposureReport

WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class PolicyFigures:
    """The result of a policy for a set of documents.

    Attributes:
        policy: name of the policy.
        window: inputs per window.
        documents: number of documents.
        windows: number of windows.
        cut: number of documents with more than one segment.
        counts: supervised targets per bucket, int64 ``[len(Buckets(window))]``.
        unsupervised: number of inputs with a label that has no loss.
    """

    policy: str
    window: int
    documents: int
    windows: int
    cut: int
    counts: torch.Tensor
    unsupervised: int = 0

    @classmethod
    def measure(
        cls,
        policy: str,
        window: int,
        lengths_D: np.ndarray,
        parts: Sequence[int] = (),
        unsupervised_D: np.ndarray | None = None,
    ) -> "PolicyFigures":
        """Lay out the documents and count. Memory holds a few windows at a time.

        Args:
            policy: one of :data:`~exact_titan.dataset.policies.POLICIES`.
            window: inputs per window.
            lengths_D: tokens of each document, at least 2, int64 ``[D]``.
            parts: number of documents of each part. Every part is laid out separately.
            unsupervised_D: number of first labels of each document without a loss, int64 ``[D]``. None: 0.
        """
        buckets = Buckets(window)
        counts = torch.zeros(len(buckets), dtype=torch.int64)
        windows = cut = unsupervised = 0
        layout = lay_out(policy, window, lengths_D, parts)
        while block := list(islice(layout, WINDOWS_AT_ONCE)):
            segments_S3 = np.array(list(chain.from_iterable(block)), dtype=np.int64)
            document_S, first_S, inputs_S = segments_S3.T
            counts += buckets.count_segments(torch.from_numpy(inputs_S))
            if unsupervised_D is not None:
                unsupervised_S = unsupervised_of_segments(unsupervised_D, segments_S3)
                counts -= buckets.count_segments(torch.from_numpy(unsupervised_S))
                unsupervised += int(unsupervised_S.sum())
            cut += int(((first_S == 0) & (inputs_S < lengths_D[document_S] - 1)).sum())
            windows += len(block)
        return cls(policy, window, len(lengths_D), windows, cut, counts, unsupervised)

    @property
    def padding(self) -> int:
        """Number of padding inputs of all windows."""
        return self.windows * self.window - self.unsupervised - int(self.counts.sum())

    @property
    def padding_share(self) -> float:
        """Padding as a share of the inputs of all windows. The utilisation is 1 minus this share."""
        return self.padding / (self.windows * self.window)


def measure_policies(folder: Path, manifest: Manifest, split: str) -> list[PolicyFigures]:
    """Return the result of each policy for the documents of a packed dataset's split.

    The result is exact. The computation is much faster than packing.

    Raises:
        InputError: if the documents' lengths are missing, or the lengths do not give the windows of the dataset.
    """
    record = manifest.splits[split]
    lengths_D = read_lengths(folder, split, record.documents, inputs=record.tokens)
    unsupervised_D = None if manifest.sft is None else read_unsupervised(folder, split, lengths_D)
    figures = [
        PolicyFigures.measure(policy, manifest.window, lengths_D, record.parts, unsupervised_D) for policy in POLICIES
    ]
    for one in figures:
        found, packed = (one.windows, one.counts.tolist()), (record.windows, record.bucket_counts)
        if one.policy == manifest.policy and found != packed:
            raise InputError(
                f"{lengths_file(folder, split)} does not fit the manifest: copy the dataset again or pack it again"
            )
    return figures


def policy_table(figures: Sequence[PolicyFigures], threshold: int) -> str:
    """Return a table of the policies: targets per bucket and in the tail in percent, windows, cuts, padding.

    Raises:
        InputError: if no bucket begins at the threshold or after the threshold.
    """
    reports = [ExposureReport(one.counts, one.window, threshold) for one in figures]
    shares = [report.mass_percent("standard").tolist() for report in reports]
    rows = [("targets, % of all", [one.policy for one in figures])]
    for label, row in zip(Buckets(figures[0].window).labels(), zip(*shares, strict=True), strict=True):
        rows.append((label, [f"{share:.2f}" for share in row]))
    rows += [
        (f"tail (>= {reports[0].tail_start})", [f"{report.tail_percent:.2f}" for report in reports]),
        ("windows", [f"{one.windows:,}" for one in figures]),
        ("documents cut", [f"{one.cut:,}" for one in figures]),
        ("documents cut, %", [f"{100 * one.cut / one.documents:.2f}" for one in figures]),
        ("padding, inputs", [f"{one.padding:,}" for one in figures]),
        ("padding, %", [f"{100 * one.padding_share:.2f}" for one in figures]),
        ("utilisation, %", [f"{100 * (1 - one.padding_share):.2f}" for one in figures]),
    ]
    return "\n".join("  ".join([f"{name:>17}", *(f"{cell:>13}" for cell in cells)]) for name, cells in rows)
