"""Counts the files that this process opens, its stats, the bytes of its reads, and its page faults in a block."""

import os
import resource
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
    ``read_bytes`` is the number of bytes of all read calls of the process. Mapped files have no read calls: ``faults``
    is the number of page faults of the process. A fault maps one or more pages of a file or of memory.
    """

    opened: Counter[str] = field(default_factory=Counter)
    stats: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    faults: int = 0


_counting: list[FileCalls] = []
_own_bytes = 0


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
    before, faults = _read_bytes(), _faults()
    _counting.append(calls)
    try:
        yield calls
    finally:
        _counting.remove(calls)
        calls.faults = _faults() - faults
        calls.read_bytes = _read_bytes() - before
        os.stat, os.lstat = stat, lstat


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _read_bytes() -> int:
    """Return the bytes of all read calls of the process, without the calls of this function."""
    global _own_bytes
    descriptor = os.open("/proc/self/io", os.O_RDONLY)
    try:
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    found = int(text.split()[1]) - _own_bytes
    _own_bytes += len(text)
    return found
