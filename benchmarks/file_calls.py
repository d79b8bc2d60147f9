"""Counts the files that this process opens, the stats and the bytes of its reads, while a block runs."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FileCalls:
    """The calls of a block.

    ``opened`` counts the opens by path. ``stats`` counts the stats by path (``os.stat`` and ``os.lstat``).
    ``read_bytes`` is the number of bytes of all read calls of the process. Reads of mapped files do not count.
    """

    opened: Counter[str] = field(default_factory=Counter)
    stats: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0


_counting: list[FileCalls] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counting and isinstance(arguments[0], str | bytes):
        for calls in _counting:
            calls.opened[os.fsdecode(arguments[0])] += 1


# Python has no call that removes a hook.
sys.addaudithook(_audit)


@contextmanager
def counted() -> Iterator[FileCalls]:
    """Count the calls of the block, in all threads of the process."""
    calls = FileCalls()
    stat, lstat = os.stat, os.lstat

    def counting(call: Any) -> Any:
        def counted_call(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
            if not isinstance(path, int):
                calls.stats[os.fsdecode(path)] += 1
            return call(path, *arguments, **options)

        return counted_call

    os.stat, os.lstat = counting(stat), counting(lstat)
    before = _read_bytes()
    _counting.append(calls)
    try:
        yield calls
    finally:
        _counting.remove(calls)
        calls.read_bytes = _read_bytes() - before
        os.stat, os.lstat = stat, lstat


def _read_bytes() -> int:
    descriptor = os.open("/proc/self/io", os.O_RDONLY)
    try:
        return int(os.read(descriptor, 4096).split()[1])
    finally:
        os.close(descriptor)
