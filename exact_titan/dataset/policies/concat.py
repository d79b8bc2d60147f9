"""Policy ``concat``: concatenate the documents, and cut them at the window borders."""

from collections.abc import Iterator

from exact_titan.dataset.policies.windows import Segment


class Concat:
    """Fills one window after the other. Only the last window can have padding.

    A document that is cut at a border continues in the next window with the token that was the last label. Memory holds
    one window.
    """

    def __init__(self, window: int) -> None:
        self._window = self._free = window
        self._documents = 0
        self._open: list[Segment] = []

    def add(self, inputs: int) -> Iterator[list[Segment]]:
        """See :class:`~exact_titan.dataset.policies.windows.Policy`."""
        first = 0
        while first < inputs:
            segment = Segment(self._documents, first, min(self._free, inputs - first))
            self._open.append(segment)
            first += segment.inputs
            self._free -= segment.inputs
            if not self._free:
                yield self._open
                self._open, self._free = [], self._window
        self._documents += 1

    def finish(self) -> Iterator[list[Segment]]:
        """See :class:`~exact_titan.dataset.policies.windows.Policy`."""
        if self._open:
            yield self._open
