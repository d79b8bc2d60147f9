"""Train the runs of a study, several at a time. The same call resumes the study after any interruption.

1. A run with the exit code 0 in its folder is finished, and is never started again.
2. A run starts when the run of its previous stage is finished, and when fewer than ``parallel`` runs are running. A run
   with a checkpoint resumes from the checkpoint by itself.
3. SIGINT, SIGTERM, SIGUSR1 and SIGHUP go to the running runs as SIGTERM. The runs save and exit with 75. A second
   SIGINT kills the runs.
4. If a run fails, the other running runs save and exit as after a signal.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

from exact_titan.errors import print_error
from exact_titan.runs.exit_codes import ExitCode
from exact_titan.study.plan import Planned
from exact_titan.study.progress import Progress
from exact_titan.study.results import is_finished
from exact_titan.system import hangup

_LOOK_SECONDS = 0.05
_LAST_LINES = 50
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_REPEATED_SECONDS = 0.5
"""A terminal and a batch system may send the same signal twice. Only a later SIGINT kills the runs."""


class Process(Protocol):
    """A running run. ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal. None: the run is running."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal to the run. Do nothing if the run has ended."""


Start = Callable[[Planned, Path], Process]
"""Starts a run: the run and the log file for its output. The log file is appended to."""


def log_file(one: Planned) -> Path:
    """Return the file with the output of a run, next to the folder of the run."""
    return one.run.folder.with_name(f"{one.run.folder.name}.log")


def train(planned: list[Planned], start: Start, *, parallel: int) -> int:
    """Train all runs that are not finished.

    Args:
        planned: all runs of the study, every run after the run that it starts from.
        start: starts a run.
        parallel: runs at one time.

    Returns:
        0 if all runs are finished, 75 if a signal or the stop file of a run stopped the study, 130 after a second
        SIGINT, and the exit code of the first run that failed (1 for a crash).
    """
    left = [one for one in planned if not is_finished(one.run)]
    done = len(planned) - len(left)
    if done:
        print(f"{done} of {len(planned)} runs are finished", flush=True)
    running: dict[str, tuple[Planned, Process]] = {}
    failed: tuple[Planned, int] | None = None
    told = False
    with _stop() as stop, Progress(planned, done, parallel) as progress:
        while running or (left and not stop and failed is None):
            while not stop and failed is None and len(running) < parallel:
                ready = next((one for one in left if one.previous is None or is_finished(one.previous)), None)
                if ready is None:
                    break
                left.remove(ready)
                progress.waiting(left)
                ready.run.folder.parent.mkdir(parents=True, exist_ok=True)
                running[str(ready.run)] = ready, start(ready, log_file(ready))
                progress.begins(ready)
            for name, (one, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[name]
                finished = code == ExitCode.FINISHED and is_finished(one.run)
                progress.ended(one, finished=finished)
                if finished or (stop and (code == ExitCode.SAVED or code < 0)):
                    continue
                if failed is None or failed[1] == ExitCode.SAVED:
                    failed = one, code
            if (stop or failed is not None) and not told:
                told = True
                if running:
                    progress.line(
                        f"stopping: {len(running)} running {'runs save' if len(running) > 1 else 'run saves'}"
                    )
                for _, process in running.values():
                    process.send_signal(signal.SIGTERM)
            if stop.killed:
                for _, process in running.values():
                    process.send_signal(signal.SIGKILL)
            progress.tick()
            time.sleep(_LOOK_SECONDS)
    if stop.killed:
        return 128 + signal.SIGINT
    if failed is not None:
        return _failure(*failed)
    return ExitCode.SAVED if stop else ExitCode.FINISHED


def _failure(one: Planned, code: int) -> int:
    """Print which run failed, its message or the last line of its output, and its log. Return the exit code."""
    if code == ExitCode.SAVED:
        print(f"{one.run}: stopped, and saved", flush=True)
        return ExitCode.SAVED
    log = log_file(one)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    shown = [line.strip() for line in lines[-_LAST_LINES:] if line.strip()]
    last = next(
        (line for line in reversed(shown) if line.startswith("exact_titan.train:")), shown[-1] if shown else "no output"
    )
    print_error("exact-titan study", f"{one.run}: {how}: {last}; {log} has all output")
    return code if code > 0 else 1


class _Stop:
    """The request to stop the study. True after a first signal.

    Attributes:
        killed: whether a second SIGINT has arrived.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._terminals = hangup.Terminals()
        self.killed = False

    def __bool__(self) -> bool:
        return self._first is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._terminals.leave()
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first > _REPEATED_SECONDS:
            self.killed = True


@contextlib.contextmanager
def _stop() -> Iterator[_Stop]:
    stop = _Stop()
    handled = [number for number in _SIGNALS if number != signal.SIGHUP or hangup.is_handled()]
    former = {number: signal.signal(number, stop.handle) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
