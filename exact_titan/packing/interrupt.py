"""Ctrl-C, SIGTERM and SIGHUP end a packing process at once."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from exact_titan.packing.threads import are_busy


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process within seconds after Ctrl-C or an exit by a signal handler (:func:`exact_titan.entry.run`).

    A thread of packing may wait for a slow store or a pipe, or may tokenize a long document. Python would wait for the
    thread.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if not are_busy():
            raise
        code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 128 + signal.SIGINT
        with contextlib.suppress(OSError):  # the terminal may be closed
            if isinstance(end, KeyboardInterrupt):
                print("exact-titan: interrupted", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        atexit._run_exitfuncs()  # removes the copies of remote files
        os._exit(code)
