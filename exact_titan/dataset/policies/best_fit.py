"""Policy ``best_fit``: no document is cut that fits a window.

Best-fit decreasing, as for packing in "Fewer Truncations Improve Language Modeling" (Ding et al., 2024,
arXiv 2404.10830), inside a bounded buffer instead of over the whole corpus.
"""

from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

from exact_titan.dataset.policies.windows import Segment

# As many tokens as a shard, so that the buffer at most doubles packing's memory; 256 windows of 128K, 2048 of 16K.
BUFFER_INPUTS = 2**25
# A waiting document costs about 300 bytes beside its tokens: 80 MB, whatever the documents' length.
BUFFER_DOCUMENTS = 2**18
WORD_BITS = 512


class BestFit:
    """Lays whole documents into the windows they fit best, the longest first.

    A longer document is cut into full windows and a rest. Documents and rests gather in a buffer of ``BUFFER_INPUTS``
    inputs or ``BUFFER_DOCUMENTS`` documents; when it is full, each of them, from the longest to the shortest, goes
    into the fullest window that has room for it. Windows that stay short are padded. Inside a window documents keep
    the order they came in.
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
        # Stable, so that the windows do not depend on how equal lengths are sorted.
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
    """Windows by the inputs they have room for; the fullest that fits is found in a constant number of steps.

    Which rooms there are is kept as bits, in words of ``WORD_BITS`` with one bit each in a summary.
    """

    def __init__(self) -> None:
        self._windows: defaultdict[int, list[list[Segment]]] = defaultdict(list)
        self._words: defaultdict[int, int] = defaultdict(int)
        self._summary = 0

    def put(self, window: list[Segment], room: int) -> None:
        """Keep a window that has room for ``room`` inputs; a full one is not needed any more."""
        if room:
            self._windows[room].append(window)
            word, bit = divmod(room, WORD_BITS)
            self._words[word] |= 1 << bit
            self._summary |= 1 << word

    def take(self, inputs: int) -> tuple[list[Segment] | None, int]:
        """Take out the window with the least room that is enough for ``inputs``, and its room; None if none is."""
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
