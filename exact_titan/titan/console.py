"""The screen of a run: one line a log step, one line a validation, and a progress bar on a terminal.

1. The code of this package writes lines with ``logging``. :class:`Screen` shows them without a prefix, on rank 0.
2. Messages of libraries, such as torchtitan's, go into the log file of the rank only (:mod:`exact_titan.titan.logs`).
   Errors of all ranks and all packages stay on the screen.
"""

import logging
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from exact_titan.runs.records import Mean, TrainRecord, ValidationRecord, Weights

_PACKAGE = str(Path(__file__).parents[1])

FILE_ONLY = {"file_only": True}
"""``extra`` of a log call whose message belongs into the log file and not on the screen."""


class Screen(logging.Handler):
    """Shows the messages of this package on rank 0, and errors of every package on every rank.

    Messages go to standard output, warnings and errors to standard error. A progress bar stays below the messages.

    Args:
        rank: rank of this process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(logging.INFO)
        self._rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.pathname.startswith(_PACKAGE) and not hasattr(record, "file_only")
        return record.levelno >= logging.ERROR or (ours and self._rank == 0)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if self._rank:
            text = f"rank {self._rank}: {text}"
        try:
            tqdm.write(text, file=sys.stdout if record.levelno < logging.WARNING else sys.stderr)
            sys.stdout.flush()
        except OSError:
            pass  # the terminal or the reader of the pipe has gone; the log file has the message
        except Exception:
            self.handleError(record)


def progress_bar(step: int, steps: int) -> tqdm:
    """Return the progress bar of a run at ``step``. Without a terminal the bar shows nothing.

    Call ``update()`` after every step and ``close()`` at the end.
    """
    # tqdm's own lock is a semaphore of several processes, and its monitor is a thread. One process needs neither.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    return tqdm(
        total=steps,
        initial=step,
        disable=not sys.stdout.isatty(),
        file=sys.stdout,
        leave=False,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f} % {bar} {n_fmt}/{total_fmt} steps  {elapsed}",
    )


def train_line(record: TrainRecord) -> str:
    """Return the line of a log step. ``-`` stands for a value that does not exist.

    ``CE``, ``tail`` and ``below the tail`` are plain cross-entropies since the last log step. ``loss`` is the weighted
    loss of the step. ``tok/s`` counts the tokens of all ranks. ``MFU`` is left out if the peak of the device is not
    known.
    """
    rate = next(iter(record.learning_rates.values()), None)
    parts = [
        f"step {record.step}/{record.steps} {100 * record.step // record.steps} %",
        f"CE {_nats(record.losses.cross_entropy)}",
        f"tail {_nats(record.losses.tail.cross_entropy)}",
        f"below the tail {_nats(record.losses.below_tail.cross_entropy)}",
        f"loss {_nats(record.loss)} (weighted)",
        f"lr {'-' if rate is None else f'{rate:.1e}'}",
        f"grad {record.grad_norm:.2f}",
        f"{short(record.tokens_per_second)} tok/s",
    ]
    if record.mfu_percent is not None:
        parts.append(f"MFU {record.mfu_percent:.0f} %")
    left = record.pace.hours_left
    parts.append(f"eta {'-' if left is None else duration(3600 * left)}")
    return "  ".join(parts)


def validation_lines(record: ValidationRecord) -> list[str]:
    """Return the line of a validation, and the line of its context gain. ``-`` stands for a value without targets."""
    losses = record.losses
    lines = [
        f"validation step {record.step}{of_weights(record.weights)}  {losses_text(losses.cross_entropy, losses.tail)}  "
        f"below the tail {_nats(losses.below_tail.cross_entropy)}  ({losses.targets:,} targets, "
        f"{losses.tail.targets:,} in the tail, {record.seconds:.0f} s)"
    ]
    gains = [
        f"beyond {int(piece):,} tokens {'-' if one.gain is None else f'{one.gain:+.4f}'} "
        f"({one.targets:,} targets, {one.seconds:.0f} s)"
        for piece, one in record.context_gain.items()
    ]
    return lines + (
        [f"context gain step {record.step}{of_weights(record.weights)}  {'  '.join(gains)}"] if gains else []
    )


def of_weights(weights: Weights) -> str:
    """Return the name of the weights after the step of a validation. The last weights have no name."""
    return "" if weights == "last" else ", moving average of the weights"


def losses_text(cross_entropy: float | None, tail: Mean) -> str:
    """Return ``CE 2.301  tail 2.170``, in nats."""
    return f"CE {_nats(cross_entropy)}  tail {_nats(tail.cross_entropy)}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def short(number: float) -> str:
    """Return a rate with three or four digits: ``812``, ``36.4k``, ``1.2M``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= 0.99995 * size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return ``hours:minutes:seconds``, such as ``1:42:10``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
