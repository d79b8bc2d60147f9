"""Exits from a signal handler that Python drops.

A handler ends a command with ``sys.exit``. If the signal arrives inside a callback of the garbage collector or inside
``__del__``, Python prints the exception, drops it, and the command continues.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_PAUSE_SECONDS = 0.01


@contextlib.contextmanager
def dropped_exits_repeated() -> Iterator[None]:
    """Repeat a dropped exit of the main thread a moment later, with the same exit code and without a traceback."""
    former = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        end = dropped.exc_value
        if not isinstance(end, SystemExit) or threading.current_thread() is not threading.main_thread():
            former(dropped)
            return
        code = end.code
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
        again = threading.Timer(_PAUSE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = former
