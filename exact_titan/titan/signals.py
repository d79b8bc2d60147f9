"""Signals that ask a run to stop. Needs no torch, so that none is missed while torch is loading."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SAME_SECONDS = 5.0
"""A signal that comes again within this time is the same one: Slurm sends it to the workers, and torchrun passes on its
own."""


class StopSignals:
    """Takes SIGTERM, SIGINT and SIGUSR1 while it is entered: the first is handed over, a second exits at once.

    A thread of its own reads them from a pipe that the C level handler writes to. So they are noticed while the main
    thread waits in a collective, where Python's handlers do not run.

    The second signal exits with 128 + its number, without any cleanup; one that only repeats the first within
    :data:`SAME_SECONDS` does not count.
    """

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._first_time = 0.0
        self._callback: Callable[[str], None] | None = None
        self._ignored = False
        self._lock = threading.Lock()

    def __enter__(self) -> "StopSignals":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # Only signals with a handler in Python are written to the pipe.
        self._former = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        threading.Thread(target=self._listen, name="stop signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._ignored else handler)
        signal.set_wakeup_fd(self._former_wakeup)
        # The reader sees the end of the pipe and closes its own side.
        os.close(self._write)

    def on_first(self, callback: Callable[[str], None]) -> None:
        """Call this with the name of the first signal, from another thread; at once if it has come already."""
        with self._lock:
            self._callback = callback
            pending = self._first
        if pending is not None:
            self._hand_over(pending, callback)

    def ignore(self) -> None:
        """Take no more signals until the process ends, left or not: torchrun ends the workers once one has left."""
        self._ignored = True

    def _listen(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] in SIGNALS and not self._ignored:
                self._take(signal.Signals(number[0]))
        os.close(self._read)

    def _take(self, received: signal.Signals) -> None:
        with self._lock:
            first, callback = self._first, self._callback
            if first is None:
                self._first, self._first_time = received, time.monotonic()
        if first is None:
            if callback is not None:
                self._hand_over(received, callback)
        elif received != first or time.monotonic() - self._first_time > SAME_SECONDS:
            self._exit(received, f"after {first.name}")

    def _hand_over(self, received: signal.Signals, callback: Callable[[str], None]) -> None:
        try:
            callback(received.name)
        except RuntimeError as error:
            self._exit(received, f"and nobody to stop with ({error})")

    def _exit(self, received: signal.Signals, why: str) -> None:
        print(f"exact_titan.train: {received.name} {why}: exits at once", file=sys.stderr, flush=True)
        os._exit(128 + received)
