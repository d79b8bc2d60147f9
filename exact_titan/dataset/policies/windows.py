"""The interface of a packing policy. A policy converts documents to windows of segments, from the lengths alone."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Segment(NamedTuple):
    """``inputs`` consecutive inputs of a document. The segment uses one more token, the last label.

    ``document`` is the number of the document, from 0 in the order of packing. ``first`` is the index of the segment's
    first input in the document.
    """

    document: int
    first: int
    inputs: int


class Policy(Protocol):
    """Lays a stream of documents into windows of ``window`` inputs.

    Every input of every document is in exactly one window. The segments of a document keep their order. The windows
    depend only on the lengths and their order. The windows can therefore be computed again without the tokens.
    """

    def __init__(self, window: int) -> None: ...

    def add(self, inputs: int) -> Iterator[list[Segment]]:
        """Add the next document of ``inputs`` >= 1 inputs. Yield the windows that this document completes.

        The method is a generator: exhaust the generator before the next call.
        """
        ...

    def finish(self) -> Iterator[list[Segment]]:
        """Yield the windows of all remaining documents. No document can be added after this call."""
        ...
