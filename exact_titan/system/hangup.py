"""SIGHUP, the signal that the terminal of a process has closed."""

import os
import signal


def is_handled() -> bool:
    """Return whether a program may handle SIGHUP. ``nohup`` starts a program with SIGHUP ignored, to be kept so."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


class Terminals:
    """Standard output and standard error of this process, as far as they are terminals now."""

    def __init__(self) -> None:
        self._streams = [stream for stream in (1, 2) if os.isatty(stream)]

    def leave(self) -> None:
        """Send later output to nowhere. Otherwise every write to the closed terminal is an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._streams:
            os.dup2(nowhere, stream)
        os.close(nowhere)
