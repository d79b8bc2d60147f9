"""How documents are laid into windows: one module a policy."""

from collections.abc import Iterator

import numpy as np

from exact_titan.data.policies.best_fit import BestFit
from exact_titan.data.policies.concat import Concat
from exact_titan.data.policies.windows import Policy, Segment

__all__ = ["POLICIES", "Policy", "Segment", "lay_out"]

POLICIES: dict[str, type[Policy]] = {"concat": Concat, "best_fit": BestFit}
BLOCK = 2**16


def lay_out(policy: str, window: int, lengths_D: np.ndarray) -> Iterator[list[Segment]]:
    """The windows of documents that are given by their lengths.

    Args:
        policy: one of ``POLICIES``.
        window: inputs per window.
        lengths_D: tokens of each document, at least 2, integer ``[D]``; taken a block at a time, so that it may be
            mapped from a file.
    """
    layout = POLICIES[policy](window)
    for start in range(0, len(lengths_D), BLOCK):
        for tokens in lengths_D[start : start + BLOCK].tolist():
            yield from layout.add(tokens - 1)
    yield from layout.finish()
