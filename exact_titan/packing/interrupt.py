"""Ctrl-C and SIGTERM end a packing process at once."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from exact_titan.packing import threads


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Clean up and end the process within seconds after Ctrl-C or SIGTERM.

    A thread of packing may wait for a slow store or a pipe, or may tokenize a long document. Python would wait for the
    thread.
    """
    # A batch system ends a job with SIGTERM. An exit by exception cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if not threads.are_busy():
            raise
        code = 128 + signal.SIGTERM
        if isinstance(end, KeyboardInterrupt):
            code = 128 + signal.SIGINT
            print("exact-titan: interrupted", file=sys.stderr)
        atexit._run_exitfuncs()  # removes the copies of remote files
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
