"""The time of the parts of an optimizer step. The measurement does not wait for the device during a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("data", "forward_backward", "optimizer", "checkpoint")


class StepClock:
    """Measures the seconds of the parts of the steps since the last call of :meth:`take`.

    The host's clock measures the parts of the host. Events on the device's stream measure the parts of the device.
    :meth:`take` reads the events at a log step, after the log step has waited for the device. On the CPU one clock
    measures both.

    Args:
        device: the device of the model.

    Attributes:
        steps: steps started since the last call of :meth:`take`. The trainer increments the number.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []
        self._open: tuple[str, Any] | None = None

    def begin(self, part: str) -> None:
        """Start a part of the device. The previous part of the device ends here."""
        self.end()
        self._open = (part, self._mark())

    def end(self) -> None:
        """End the started part of the device, if there is one. The host has issued all work of the part."""
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
        """Measure a part of the host. The started part of the device is interrupted until the part of the host ends."""
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
        """Return the seconds a step of each part in ``PARTS``, and reset the clock.

        The method waits for the issued work of the device.
        """
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
