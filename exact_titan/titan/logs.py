"""The log files of a run: ``<dump_folder>/logs/rank_N.log``, one file a rank, appended over restarts.

1. :func:`start_logging` collects the messages of all packages and Python's warnings from the start of the process.
2. :func:`open_log_file` opens the file of the rank when the run's folder is known, and writes the held messages.

The module imports no torch. Warnings at the import of torch are collected, too.
"""

import contextlib
import logging
import logging.handlers
import os
import shlex
import socket
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from exact_titan.runs import LOGS_FOLDER
from exact_titan.system.terminal import escape, one_line
from exact_titan.titan.console import Screen

_HELD_MESSAGES = 100_000
_NEVER = logging.CRITICAL + 1

_held = logging.handlers.MemoryHandler(_HELD_MESSAGES, flushLevel=_NEVER, flushOnClose=False)


def start_logging(rank: int) -> None:
    """Send the messages of all packages and Python's warnings to the screen's filter, and hold them for the log file.

    The function replaces torchtitan's ``init_logger``, which prints all messages.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [Screen(rank), _held]
    logging.captureWarnings(True)
    os.environ["KINETO_LOG_LEVEL"] = "5"  # as torchtitan's init_logger does: torch's profiler is verbose


def open_log_file(folder: Path, rank: int) -> Path:
    """Open the log file of the rank in the run's folder, and write a start marker and the held messages.

    NCCL writes into the same folder, unless ``NCCL_DEBUG_FILE`` is set. NCCL overwrites a file, so the name of its file
    has the process id.

    Returns:
        The log file.
    """
    file = folder / LOGS_FOLDER / f"rank_{rank}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NCCL_DEBUG_FILE", str(file.parent.resolve() / f"nccl_rank_{rank}.%p.log"))
    ranks, command = os.environ.get("WORLD_SIZE", "1"), one_line(shlex.join(sys.argv))
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    with file.open("a", encoding="utf-8") as marker:
        marker.write(
            f"=== start {now}, rank {rank} of {ranks}, {socket.gethostname()}, process {os.getpid()}: {command}\n"
        )
    log = _LogFile(file, encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _held.setTarget(log)
    _held.flush()
    root = logging.getLogger()
    root.removeHandler(_held)
    root.addHandler(log)
    _take_over_libraries()
    _log_crashes()
    return file


class _LogFile(logging.FileHandler):
    """A log file that a terminal may show. A write error drops messages and prints one warning."""

    _told = False

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            with contextlib.suppress(OSError):
                print(f"warning: {self.baseFilename} cannot be written ({error})", file=sys.stderr, flush=True)


def _take_over_libraries() -> None:
    """Remove the screen handlers of libraries, such as torch's. Their messages reach the log file."""
    for one in logging.Logger.manager.loggerDict.values():
        if isinstance(one, logging.Logger) and any(type(handler) is logging.StreamHandler for handler in one.handlers):
            one.handlers[:] = [handler for handler in one.handlers if type(handler) is not logging.StreamHandler]
            one.propagate = True


def _log_crashes() -> None:
    """Write the traceback of a crash into the log file, too. The screen of a large run mixes the ranks."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        logging.getLogger().log(logging.INFO, "crash", exc_info=(kind, error, traceback))
        shown(kind, error, traceback)

    sys.excepthook = hook
    shown_of_thread = threading.excepthook

    def thread_hook(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_type, ended.exc_value, ended.exc_traceback
        logging.getLogger().log(logging.INFO, f"crash of {ended.thread}", exc_info=error)  # type: ignore[arg-type]
        # The thread of TensorBoard's writer gives an error of the disk to the next call. The next call warns.
        if not isinstance(ended.exc_value, OSError):
            shown_of_thread(ended)

    threading.excepthook = thread_hook
