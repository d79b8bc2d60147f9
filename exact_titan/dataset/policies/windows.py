"""What a packing policy makes of documents: windows of segments. It sees lengths only, never tokens."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Segment(NamedTuple):
    """``inputs`` consecutive inputs of a document; it uses one token more, the last label.

    ``document`` counts the documents from 0 in the order they came, ``first`` is the segment's first input in it.
    """

    document: int
    first: int
    inputs: int


class Policy(Protocol):
    """Lays documents into windows of ``window`` inputs while they come.

    Every input of every document stands in exactly one window, and the segments of a document come in their order. The
    windows depend on the lengths and their order alone, so that they can be worked out again without the tokens.
    """

    def __init__(self, window: int) -> None: ...

    def add(self, inputs: int) -> Iterator[list[Segment]]:
        """Take the next document of ``inputs`` >= 1 inputs; gives the windows that are closed now.

        It works as it is iterated over: go to the end before the next call.
        """
        ...

    def finish(self) -> Iterator[list[Segment]]:
        """The windows of all that is left. Nothing can be added afterwards."""
        ...
