"""Context gain: what the targets of the tail gain from the context beyond K tokens.

1. A pass over the validation windows measures every target with its whole context.
2. One further pass per K cuts every segment into pieces of K tokens. Only the positions change (:func:`cut`). Attention
   and RoPE follow the positions, so a target sees only its piece. Tokens and targets stay the same.
3. :meth:`Cells.gain` is the mean difference of the two passes over the targets of the tail.

The passes need only sums. Both passes add up the cross-entropies per cell (:class:`Cells`), so the memory of a
validation stays at one batch.
"""

from collections.abc import Sequence

import torch

from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.runs.records import ContextGain


def check_pieces(pieces: Sequence[int], *, window: int) -> None:
    """Refuse values of ``validator.context_gain`` that give no context gain.

    Raises:
        InputError: naming the value.
    """
    for piece in pieces:
        if not 1 <= piece < window:
            raise InputError(
                f"validator.context_gain has {piece}: with a window of {window} tokens a piece must have 1 to "
                f"{window - 1} tokens; a longer piece cuts nothing"
            )
        if pieces.count(piece) > 1:
            raise InputError(f"validator.context_gain has {piece} twice: name every length once")


def cut(positions: torch.Tensor, piece: int) -> torch.Tensor:
    """Return the positions after a cut of every segment into pieces of ``piece`` tokens. The last piece may be shorter.

    Args:
        positions: index of each input in its visible document segment, integer, any shape.
    """
    return positions % piece


class Cells:
    """The buckets of effective context, divided again at every K.

    A bucket is a union of cells. The targets with a context of K or more are a union of cells, too.

    Args:
        buckets: the buckets of the loss.
        pieces: every K, between 1 and the window.
    """

    def __init__(self, buckets: Buckets, pieces: Sequence[int]) -> None:
        known = buckets.lower_bounds.tolist()
        self._buckets = buckets
        self._dividing = sorted(set(pieces) - set(known))
        self._lower_bounds_c = torch.tensor(sorted([*known, *self._dividing]))
        self._bucket_c = buckets.index(self._lower_bounds_c)

    def __len__(self) -> int:
        return len(self._lower_bounds_c)

    def index(self, context: torch.Tensor) -> torch.Tensor:
        """Return the cell of every target: int64, the shape and device of ``context``."""
        cell = self._buckets.index(context)
        for bound in self._dividing:
            cell = cell + (context >= bound)
        return cell

    def by_bucket(self, sums_2c: torch.Tensor) -> torch.Tensor:
        """Return the sums per bucket, float64 ``[2, n]``, from sums per cell on the host."""
        return sums_2c.new_zeros(2, len(self._buckets)).index_add(1, self._bucket_c, sums_2c)

    def gain(
        self, whole_2c: torch.Tensor, pieces_2c: torch.Tensor, *, piece: int, threshold: int, seconds: float
    ) -> ContextGain:
        """Return the context gain of the targets of the tail with a context of ``piece`` or more.

        A target with less context is in the first piece of its segment, so the cut does not change its loss.

        Args:
            whole_2c: sums of the cross-entropies and numbers of targets per cell, with the whole context.
            pieces_2c: the same sums after the cut.
            threshold: first effective context of the tail, in tokens.
            seconds: duration of the pass over the pieces.

        Raises:
            InputError: if the two passes have different targets.
        """
        if not torch.equal(whole_2c[1], pieces_2c[1]):
            raise InputError(
                "validator.context_gain needs the same windows in every pass, but validator.dataloader has given "
                "others: use a packed dataset, or leave context_gain out"
            )
        tail_c = self._buckets.lower_bounds[self._bucket_c] >= threshold
        beyond_c = tail_c & (self._lower_bounds_c >= piece)
        targets = int(whole_2c[1, beyond_c].sum())
        total = float((pieces_2c[0] - whole_2c[0])[beyond_c].sum())
        return ContextGain(total / targets if targets else None, targets, seconds)
