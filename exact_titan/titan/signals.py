"""The signals that ask a run to stop. This module does not import torch, so no signal is lost while torch loads."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from exact_titan.system import hangup

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP comes when the terminal closes. A run under ``nohup`` starts with SIGHUP ignored, and SIGHUP stays ignored."""

SAME_SECONDS = 5.0
"""Time in which a repeated signal counts as the first signal. Slurm sends a signal to the workers and to torchrun, and
torchrun sends the signal to the workers again."""


class StopSignals:
    """Handles :data:`SIGNALS` inside its ``with`` block. The first signal goes to the callback.

    A second signal ends the process at once, with the exit code 128 + its number and without cleanup. A repetition of
    the first signal within :data:`SAME_SECONDS` does not count as a second signal. Other code may ask for a stop as
    well (:meth:`ask`). Such a request does not count as a signal.

    Python's C level handler writes the signals to a pipe, and a thread reads the pipe. The thread receives a signal
    even while the main thread waits in a collective. Python's own handlers do not run during such a wait.

    Attributes:
        are_over: whether the ``with`` block has ended.
    """

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._first_time = 0.0
        self._pending: str | None = None
        self._callback: Callable[[str], None] | None = None
        self._ignored = False
        self.are_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> "StopSignals":
        self._terminals = hangup.Terminals()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        handled = [one for one in SIGNALS if one != signal.SIGHUP or hangup.is_handled()]
        # Only signals with a Python handler are written to the pipe.
        self._former = {number: signal.signal(number, lambda *_: None) for number in handled}
        threading.Thread(target=self._listen, name="stop signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.are_over = True
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._ignored else handler)
        signal.set_wakeup_fd(self._former_wakeup)
        # The reading thread receives the end of the pipe and closes its end.
        os.close(self._write)

    def on_first(self, callback: Callable[[str], None]) -> None:
        """Set the callback. Another thread calls the callback with the name of the first signal.

        If the signal or another request has already arrived, this method calls the callback at once.
        """
        with self._lock:
            self._callback = callback
            pending = self._pending
        if pending is not None:
            self._hand_over(pending, callback)

    def ask(self, reason: str) -> None:
        """Give ``reason`` to the callback, as a signal does. Without a callback, :meth:`on_first` does."""
        with self._lock:
            callback = self._callback
            if callback is None:
                self._pending = self._pending or reason
        if callback is not None:
            self._hand_over(reason, callback)

    @property
    def has_callback(self) -> bool:
        """Whether :meth:`on_first` was called."""
        return self._callback is not None

    def ignore(self) -> None:
        """Ignore all later signals until the process ends, also after the ``with`` block.

        torchrun sends signals to all workers after one worker has ended.
        """
        self._ignored = True

    def _listen(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] in SIGNALS and not self._ignored:
                self._take(signal.Signals(number[0]))
        os.close(self._read)

    def _take(self, received: signal.Signals) -> None:
        if received == signal.SIGHUP:
            self._terminals.leave()
        with self._lock:
            first = self._first
            if first is None:
                self._first, self._first_time = received, time.monotonic()
        if first is None:
            self.ask(received.name)
        elif received != first or time.monotonic() - self._first_time > SAME_SECONDS:
            exit_at_once(f"{received.name} after {first.name}", 128 + received)

    def _hand_over(self, reason: str, callback: Callable[[str], None]) -> None:
        try:
            callback(reason)
        except RuntimeError as error:
            number = self._first
            exit_at_once(f"{reason} cannot stop all ranks ({error})", 1 if number is None else 128 + number)


def exit_at_once(why: str, code: int) -> None:
    """Print the reason, and end the process without cleanup."""
    with contextlib.suppress(OSError):
        print(f"exact_titan.train: {why}: exits at once", file=sys.stderr, flush=True)
    os._exit(code)
