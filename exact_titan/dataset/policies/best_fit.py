"""Policy ``best_fit``: the policy does not cut a document that fits into a window.

The algorithm is best-fit decreasing, as in "Fewer Truncations Improve Language Modeling" (Ding et al., 2024,
arXiv 2404.10830). The paper sorts the whole corpus; this module sorts a bounded buffer.
"""

from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

from exact_titan.dataset.policies.windows import Segment

# The same number of tokens as a shard: the buffer at most doubles packing's memory. 256 windows of 128K, 2048 of 16K.
BUFFER_INPUTS = 2**25
# A document in the buffer takes about 300 bytes in addition to its tokens: 80 MB for documents of any length.
BUFFER_DOCUMENTS = 2**18
WORD_BITS = 512


class BestFit:
    """Lays whole documents into the windows of best fit, the longest document first.

    1. A document that is longer than a window is cut into full windows and a rest.
    2. Documents and rests are collected in a buffer of ``BUFFER_INPUTS`` inputs or ``BUFFER_DOCUMENTS`` documents.
    3. When the buffer is full, each document or rest, from the longest to the shortest, goes into the fullest window
       with enough room, or into a new window.
    4. Windows that are not full are padded. Inside a window the documents keep their original order.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._documents = 0
        self._buffer: list[Segment] = []
        self._buffered = 0

    def add(self, inputs: int) -> Iterator[list[Segment]]:
        """See :class:`~exact_titan.dataset.policies.windows.Policy`."""
        document = self._documents
        self._documents += 1
        rest = inputs % self._window
        for first in range(0, inputs - rest, self._window):
            yield [Segment(document, first, self._window)]
        if rest:
            self._buffer.append(Segment(document, inputs - rest, rest))
            self._buffered += rest
            if self._buffered >= BUFFER_INPUTS or len(self._buffer) >= BUFFER_DOCUMENTS:
                yield from self.finish()

    def finish(self) -> Iterator[list[Segment]]:
        """See :class:`~exact_titan.dataset.policies.windows.Policy`."""
        # The sort is stable: equal lengths keep their order, so the windows are reproducible.
        longest_first = sorted(self._buffer, key=attrgetter("inputs"), reverse=True)
        self._buffer, self._buffered = [], 0
        windows: list[list[Segment]] = []
        with_room = _WindowsByRoom()
        for segment in longest_first:
            window, room = with_room.take(segment.inputs)
            if window is None:
                window, room = [], self._window
                windows.append(window)
            window.append(segment)
            with_room.put(window, room - segment.inputs)
        for window in windows:
            window.sort()
            yield window


class _WindowsByRoom:
    """Open windows by their room, which is the number of free inputs.

    The fullest window with enough room is found in a constant number of steps. A bit for each room says whether a
    window with this room exists. The bits are stored in words of ``WORD_BITS`` bits. A summary has one bit for each
    word.
    """

    def __init__(self) -> None:
        self._windows: defaultdict[int, list[list[Segment]]] = defaultdict(list)
        self._words: defaultdict[int, int] = defaultdict(int)
        self._summary = 0

    def put(self, window: list[Segment], room: int) -> None:
        """Store a window with room for ``room`` inputs. A full window is not stored."""
        if room:
            self._windows[room].append(window)
            word, bit = divmod(room, WORD_BITS)
            self._words[word] |= 1 << bit
            self._summary |= 1 << word

    def take(self, inputs: int) -> tuple[list[Segment] | None, int]:
        """Remove and return the window with the least room for ``inputs`` inputs, and its room.

        If no window has enough room, the window is None.
        """
        word, bit = divmod(inputs, WORD_BITS)
        bits = self._words[word] >> bit << bit
        if not bits:
            words = self._summary >> word + 1 << word + 1
            if not words:
                return None, 0
            word = _lowest_bit(words)
            bits = self._words[word]
        bit = _lowest_bit(bits)
        room = word * WORD_BITS + bit
        same_room = self._windows[room]
        window = same_room.pop()
        if not same_room:
            self._words[word] ^= 1 << bit
            if not self._words[word]:
                self._summary ^= 1 << word
        return window, room


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
