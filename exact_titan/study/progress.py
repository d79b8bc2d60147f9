"""The output of a study: one line for every finished run, and a live line on a terminal."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from exact_titan.errors import InputError
from exact_titan.runs.metrics_log import read_records
from exact_titan.study.plan import Planned


class Progress:
    """Prints the progress of a study.

    Args:
        planned: all runs of the study.
        done: number of runs that were finished before.
        parallel: runs at one time.
    """

    def __init__(self, planned: list[Planned], done: int, parallel: int) -> None:
        self._total, self._done, self._parallel = len(planned), done, parallel
        self._waiting: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}
        self._begun: dict[str, tuple[Planned, float]] = {}
        self._shown = 0.0
        self._bar = tqdm(
            total=self._total,
            initial=done,
            desc="study",
            unit="run",
            leave=False,
            disable=not sys.stdout.isatty(),
            file=sys.stdout,
            bar_format="{desc} {n_fmt}/{total_fmt} runs |{bar:20}|{postfix}",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def waiting(self, planned: list[Planned]) -> None:
        """Tell the runs that are left, without the running runs."""
        self._waiting = {}
        for one in planned:
            self._waiting[one.run.stage] = self._waiting.get(one.run.stage, 0) + 1

    def tick(self) -> None:
        """Draw the live line again, at most once a second: the time left decreases."""
        if not self._bar.disable and time.monotonic() - self._shown > 1:
            self._show()

    def begins(self, one: Planned) -> None:
        """A run has started."""
        self._begun[str(one.run)] = (one, time.monotonic())
        self._show()

    def ended(self, one: Planned, *, finished: bool) -> None:
        """A run has ended. A line names a finished run."""
        _, begun = self._begun.pop(str(one.run))
        if finished:
            seconds = time.monotonic() - begun
            self._seconds.setdefault(one.run.stage, []).append(seconds)
            self._done += 1
            self._bar.update()
            left = self.time_left()
            rest = f"; {_duration(left)} left" if left is not None else ""
            self.line(f"[{self._done}/{self._total}] {one.run}: {_validation(one)}{_duration(seconds)}{rest}")
        self._show()

    def line(self, text: str) -> None:
        """Print a line above the live line."""
        self._bar.clear()
        print(text, flush=True)
        self._show()

    def time_left(self) -> float | None:
        """Return the seconds until the last run ends, from the mean of the finished runs. None: no run has finished.

        A stage without a finished run counts with the mean of all finished runs.
        """
        every = [seconds for stage in self._seconds.values() for seconds in stage]
        if not every:
            return None
        mean = {stage: sum(seconds) / len(seconds) for stage, seconds in self._seconds.items()}
        overall = sum(every) / len(every)
        left = sum(number * mean.get(stage, overall) for stage, number in self._waiting.items())
        now = time.monotonic()
        for one, begun in self._begun.values():
            left += max(0.0, mean.get(one.run.stage, overall) - (now - begun))
        return left / self._parallel

    def _show(self) -> None:
        self._shown = time.monotonic()
        left = self.time_left()
        running = "; ".join(name for name in self._begun)
        self._bar.set_postfix_str(f"{f'{_duration(left)} left, ' if left else ''}{running}"[:150])


def _duration(seconds: float) -> str:
    return tqdm.format_interval(seconds)


def _validation(one: Planned) -> str:
    """Return the last validation of a finished run with the last weights. Empty: the run has no validation."""
    try:
        records = read_records(one.run.folder, "validation")
    except InputError:  # a run that was finished before its first record
        return ""
    last = [record for record in records if record.get("weights", "last") == "last"]
    return f"validation {last[-1]['cross_entropy']:.4f} at step {last[-1]['step']}, " if last else ""
