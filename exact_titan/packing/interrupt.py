"""Ctrl-C, SIGTERM and SIGHUP end a packing process at once."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from exact_titan.packing import threads

STOPS = (signal.SIGTERM, signal.SIGHUP)
"""A batch system ends a job with SIGTERM. A terminal that closes sends SIGHUP."""


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Clean up and end the process within seconds after Ctrl-C, SIGTERM or SIGHUP. ``nohup`` keeps its meaning.

    The exit code is 128 and the number of the signal. A thread of packing may wait for a slow store or a pipe, or may
    tokenize a long document. Python would wait for the thread.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    handled = [number for number in STOPS if before[number] != signal.SIG_IGN]
    code = 128 + signal.SIGINT

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal code
        code = 128 + number
        # A second signal must not break off the clean-up.
        for one in handled:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(code)  # an exit by exception cleans up

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if not threads.are_busy():
            raise
        # The terminal may be gone.
        with contextlib.suppress(OSError):
            if isinstance(end, KeyboardInterrupt):
                print("exact-titan: interrupted", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        atexit._run_exitfuncs()  # removes the copies of remote files
        os._exit(code)
    finally:
        for number in handled:
            signal.signal(number, before[number])
