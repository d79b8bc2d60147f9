"""Where the time of the optimizer steps goes, measured without a wait for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("data", "forward_backward", "optimizer", "checkpoint")


class StepClock:
    """Seconds of the parts of the steps since they were last taken.

    What the host does is timed by its own clock. What the device does is timed between events on its stream, which are
    read when the times are taken: a log step has waited for the device by then. On the CPU there is one clock for both.

    Args:
        device: where the model is.

    Attributes:
        steps: steps begun since the times were taken, counted by the trainer.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []
        self._open: tuple[str, Any] | None = None

    def begin(self, part: str) -> None:
        """The device begins a part of a step; the one before ends here."""
        self.end()
        self._open = (part, self._mark())

    def end(self) -> None:
        """The device has been given all of the part that was begun, if one was."""
        if self._open is None:
            return
        (part, begun), ended = self._open, self._mark()
        self._open = None
        if isinstance(begun, float):
            self._seconds[part] += ended - begun
        else:
            self._spans.append((part, begun, ended))

    @contextmanager
    def host(self, part: str) -> Iterator[None]:
        """A part that the host is busy with; the device's part that was begun is interrupted for so long."""
        interrupted = None if self._open is None else self._open[0]
        self.end()
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - begun
            if interrupted is not None:
                self.begin(interrupted)

    def take(self) -> list[float]:
        """Seconds a step of each of ``PARTS``, and begin again. Waits for the device to end what it was given."""
        for part, begun, ended in self._spans:
            ended.synchronize()
            self._seconds[part] += begun.elapsed_time(ended) / 1000
        seconds = [seconds / max(self.steps, 1) for seconds in self._seconds.values()]
        self._spans.clear()
        self.steps = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return seconds

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        return event
