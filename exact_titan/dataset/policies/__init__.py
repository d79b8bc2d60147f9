"""The packing policies. A policy lays documents into windows. Each policy is one module."""

from collections.abc import Iterator, Sequence

import numpy as np

from exact_titan.dataset.policies.best_fit import BestFit
from exact_titan.dataset.policies.concat import Concat
from exact_titan.dataset.policies.windows import Policy, Segment

__all__ = ["POLICIES", "Policy", "Segment", "lay_out"]

POLICIES: dict[str, type[Policy]] = {"concat": Concat, "best_fit": BestFit}
BLOCK = 2**16


def lay_out(policy: str, window: int, lengths_D: np.ndarray, parts: Sequence[int] = ()) -> Iterator[list[Segment]]:
    """Yield the windows of documents from the lengths of the documents.

    Args:
        policy: one of ``POLICIES``.
        window: inputs per window.
        lengths_D: tokens of each document, at least 2, integer ``[D]``. The function reads the array in blocks. The
            array may therefore be mapped from a file.
        parts: number of documents of each part. Every part is laid out separately, one after another: no window has
            documents of two parts. By default all documents are one part.
    """
    first = 0
    for documents in parts or [len(lengths_D)]:
        layout = POLICIES[policy](window)
        for start in range(first, first + documents, BLOCK):
            for tokens in lengths_D[start : min(start + BLOCK, first + documents)].tolist():
                yield from _moved(layout.add(tokens - 1), first)
        yield from _moved(layout.finish(), first)
        first += documents


def _moved(windows: Iterator[list[Segment]], first: int) -> Iterator[list[Segment]]:
    """Add ``first`` to the document numbers of the windows."""
    if not first:
        return windows
    return ([Segment(document + first, start, inputs) for document, start, inputs in window] for window in windows)
