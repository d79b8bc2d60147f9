"""The effective left context of every target, and the logarithmic buckets of the context.

Source: EXACT (arXiv 2605.10544), the definition of effective context and its bucketing.
"""

import torch

FIRST_BOUND = 8
_CHUNK = 2**14


def effective_context(positions: torch.Tensor) -> torch.Tensor:
    """Return the number of visible tokens of the same document before each target, ``l_i = i - s(i)``.

    Args:
        positions: index of every *input* token in its visible document segment, from 0 (torchtitan's ``positions``),
            integer, any shape. If the window's edge cuts a document, the next segment of the document starts again
            at 0, because only visible tokens count.

    Returns:
        int64, the same shape. The target of input ``p`` sees the inputs ``0 … p``. Its context is therefore ``p + 1``.
    """
    return positions.to(torch.int64) + 1


class Buckets:
    """Logarithmic buckets ``[0,7], [8,15], [16,31], …``. The last bucket ends at the window, both ends included.

    For a window of 16384 the last bucket is ``[8192, 16384]``. A document that fills the window has one target with the
    full context 16384. A separate bucket for this target would have so few counts that its weight would explode.

    Args:
        window: window length in input tokens, at least 1.

    Raises:
        ValueError: if ``window`` is smaller than 1.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}: a window holds at least 1 token")
        bounds = [0]
        bound = FIRST_BOUND
        while bound < window:
            bounds.append(bound)
            bound *= 2
        self.window = window
        self.lower_bounds = torch.tensor(bounds, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.lower_bounds)

    def index(self, context: torch.Tensor) -> torch.Tensor:
        """Return the bucket of every target: int64, the shape and device of ``context``.

        Arithmetic replaces a search, because a search would copy the bounds to the device. The bucket follows from the
        exponent of the context as a float64. The exponent is exact for every integer below 2**53.

        Args:
            context: effective contexts, ``0 … window``.
        """
        exponent = torch.frexp(context.to(torch.float64)).exponent
        return (exponent - (FIRST_BOUND.bit_length() - 1)).clamp(0, len(self) - 1).to(torch.int64)

    def labels(self) -> list[str]:
        """Return ``<lo>-<hi>`` of every bucket, both ends included. Tables and TensorBoard tags use these names."""
        bounds = self.lower_bounds.tolist()
        ends = [bound - 1 for bound in bounds[1:]] + [self.window]
        return [f"{low}-{high}" for low, high in zip(bounds, ends, strict=True)]

    def count_segments(self, segment_length: torch.Tensor, unsupervised: torch.Tensor | None = None) -> torch.Tensor:
        """Return the number of targets per bucket of visible document segments. The method builds no positions.

        Args:
            segment_length: number of inputs of every segment, integer, any shape. A segment of ``n`` inputs has one
                target at each effective context ``1 … n``.
            unsupervised: number of leading targets of every segment that do not count, same shape. None: 0.

        Returns:
            int64 ``[len(self)]``.
        """
        if unsupervised is not None:
            # The leading targets have the contexts of a segment of their own.
            return self.count_segments(segment_length) - self.count_segments(unsupervised)
        length_S = segment_length.reshape(-1).to(torch.int64)
        bounds = self.lower_bounds.to(length_S.device)
        # A segment has min(n, bound - 1) targets with a context below `bound`.
        below = [torch.minimum(length_S, bound - 1).clamp(min=0).sum() for bound in bounds[1:]]
        cumulative = torch.stack([torch.zeros_like(length_S.sum()), *below, length_S.sum()])
        return cumulative.diff()

    def count_joint(
        self, segment_length: torch.Tensor, segment_offset: torch.Tensor, unsupervised: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the number of targets per bucket of effective context (rows) and of packed position (columns).

        The packed position of a target is its index in the window plus 1, the effective context if the window were one
        document. The method builds no positions. A million segments take about 0.3 s on one core.

        Args:
            segment_length: number of inputs of every visible document segment, integer ``[S]``.
            segment_offset: index of the first input of every segment in its window, integer ``[S]``.
            unsupervised: number of leading targets of every segment that do not count, integer ``[S]``. None: 0.

        Returns:
            int64 ``[len(self), len(self)]``.
        """
        if unsupervised is not None:
            whole_nn = self.count_joint(segment_length, segment_offset)
            return whole_nn - self.count_joint(unsupervised, segment_offset)
        ends = [bound - 1 for bound in self.lower_bounds.tolist()[1:]] + [self.window]
        end_n1 = torch.tensor(ends, dtype=torch.int32)[:, None]
        below_nn = torch.zeros(len(ends), len(ends), dtype=torch.int64)
        # The segments of a chunk fit into the cache of a core.
        chunks = (one.to(torch.int32).split(_CHUNK) for one in (segment_length, segment_offset))
        for length_S, offset_S in zip(*chunks, strict=True):
            # The targets of a segment with a context up to `end` are its first min(n, end) targets. The targets with a
            # position up to `end` are its first max(end - offset, 0) targets.
            position_nS = (end_n1 - offset_S).clamp(min=0)
            for row, end in enumerate(ends):
                below_nn[row] += torch.minimum(position_nS, length_S.clamp(max=end)).sum(1)
        return torch.nn.functional.pad(below_nn, (1, 0, 1, 0)).diff(dim=0).diff(dim=1)
