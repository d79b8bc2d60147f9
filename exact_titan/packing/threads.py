"""The threads that pack a part: one thread reads, several threads tokenize. The order of the documents stays."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# One batch is converted to arrays while the other batches keep the tokenizer's threads busy. Long documents need many
# batches in flight, because only one thread tokenizes a document.
MAX_IN_FLIGHT = 16
_READING, _ENCODING = "packing-read", "packing-encode"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """One thread that reads, and threads that tokenize.

    Args:
        workers: number of the tokenizer's own threads.

    Attributes:
        in_flight: number of threads that tokenize.
        reading, encoding: the pools of the threads.
    """

    def __init__(self, workers: int) -> None:
        self.in_flight = min(workers + 1, MAX_IN_FLIGHT)
        self.reading = ThreadPoolExecutor(1, _READING)
        self.encoding = ThreadPoolExecutor(self.in_flight, _ENCODING)

    def stop(self, *, wait: bool) -> None:
        """Start no further work. ``wait``: return when all threads have ended."""
        for pool in (self.reading, self.encoding):
            pool.shutdown(wait=wait, cancel_futures=True)


def are_busy() -> bool:
    """Return whether a thread of any :class:`Threads` still runs. The end of Python would wait for this thread."""
    return any(thread.name.startswith((_READING, _ENCODING)) for thread in threading.enumerate())


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Yield ``function(item)`` of each item in the items' order, with up to ``depth`` calls in flight."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
