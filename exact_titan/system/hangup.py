"""SIGHUP, the signal that the terminal of a process has closed."""

import os
import signal


def is_handled() -> bool:
    """Return whether a program may handle SIGHUP. Under ``nohup`` a program must ignore SIGHUP."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


class Terminals:
    """The terminals among standard output and standard error of this process."""

    def __init__(self) -> None:
        self._streams = [stream for stream in (1, 2) if os.isatty(stream)]

    def leave(self) -> None:
        """Send later output to nowhere. Otherwise every write to the closed terminal is an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._streams:
            os.dup2(nowhere, stream)
        os.close(nowhere)
