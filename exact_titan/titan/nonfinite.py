"""Detection of a loss or a gradient that is NaN or infinite. No training step waits for the device.

1. The trainer reports the windows and the loss of every microbatch.
2. At the end of a step the losses and the gradient norm are copied to the host asynchronously.
3. A later step looks at the copies that have arrived. A save, a stop and the end of the run look at all copies.
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils

from exact_titan.runs.exit_codes import Ended, ExitCode


class NonFinite(Ended):
    """The end of a run on all ranks, after a loss or the gradient was NaN or infinite.

    Attributes:
        step: the first optimizer step with a non-finite value.
        what: the value, for example ``the loss is nan``.
        places: places of the run (:mod:`exact_titan.sampling`) whose windows had a non-finite loss. If only the
            gradient was not finite: all places of the step.
    """

    def __init__(self, step: int, what: str, places: list[int]) -> None:
        super().__init__(ExitCode.NOT_FINITE)
        self.step, self.what, self.places = step, what, places


@dataclass(frozen=True)
class _Detection:
    """The first non-finite value that this rank has found."""

    step: int
    in_loss: bool
    value: float
    places: list[int]

    @property
    def what(self) -> str:
        return f"the {'loss' if self.in_loss else 'norm of the gradient'} is {self.value}"


@dataclass(frozen=True)
class _HostCopy:
    """The losses and the gradient norm of one step on the way to the host. The event ends with the copy."""

    step: int
    places: list[list[int]]
    values: torch.Tensor
    event: torch.Event | None


class NonFiniteDetector:
    """Checks the loss of every microbatch and the norm of every gradient.

    The numbers of a step are a few bytes. A copy to the host follows each step. A later step checks the copy when the
    copy has arrived. Detection is therefore usually one step late. A save, a stop and the end of the run wait for all
    copies. Detection adds no collective and no wait to a step. The weights of the run are not usable after a detection.
    The run therefore saves nothing after a detection.

    Args:
        device: device of the training.
        rounds: microbatches of a step on this rank.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        # The losses first, the gradient norm last.
        self._values = torch.zeros(rounds + 1, device=device)
        self._places: list[list[int]] = []
        self._losses = 0
        self._in_step = False
        self._copies: deque[_HostCopy] = deque()
        self._free_buffers: list[torch.Tensor] = []
        self._detection: _Detection | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Return the context of optimizer step ``step``. The context reads the gradient norm in torchtitan's clipping,
        because torchtitan does not report the norm elsewhere. A ``max_norm`` of 0 means no clipping. torchtitan's
        clipping would multiply the gradients by 0."""
        self._places, self._losses, self._in_step = [], 0, True
        stock = dist_utils.clip_grad_norm_

        def clip(parameters, max_norm: float, **kwargs) -> torch.Tensor:
            norm = stock(parameters, max_norm or math.inf, **kwargs)
            self._copy_to_host(step, norm)
            return norm

        dist_utils.clip_grad_norm_ = clip
        try:
            yield
        finally:
            dist_utils.clip_grad_norm_ = stock
            self._in_step = False

    @property
    def step_places(self) -> list[list[int]]:
        """Places of each microbatch of the current step. Between two steps: of the last step."""
        return self._places

    def add_batch(self, places: list[int]) -> None:
        """Report the places of the next microbatch of the step."""
        if self._in_step:
            self._places.append(places)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Report the loss of the next microbatch, in the order of :meth:`add_batch`. The loss stays on the device."""
        if self._in_step:
            self._values[self._losses].copy_(loss.detach())
            self._losses += 1

    def detected(self) -> str | None:
        """Return the first non-finite value of this rank in the copies that have arrived. None if all are finite.

        Example: ``the loss is nan at step 12``.
        """
        while self._copies and (self._copies[0].event is None or self._copies[0].event.query()):
            self._inspect(self._copies.popleft())
        if self._detection is None:
            return None
        return f"{self._detection.what} at step {self._detection.step}"

    def check(self) -> None:
        """Wait for the copies of all steps and inspect them. This is a collective.

        Raises:
            NonFinite: on all ranks, if any rank has found a non-finite value.
        """
        while self._copies:
            copy = self._copies.popleft()
            if copy.event is not None:
                copy.event.synchronize()
            self._inspect(copy)
        detections: list[_Detection | None] = [None] * dist.get_world_size()
        dist.all_gather_object(detections, self._detection)
        found = [one for one in detections if one is not None]
        if not found:
            return
        first = min(one.step for one in found)
        found = [one for one in found if one.step == first]
        # A non-finite loss on one rank makes the gradient non-finite on every rank. The loss names the windows.
        found = [one for one in found if one.in_loss] or found
        # Ranks of a context-parallel or tensor-parallel group have the same windows.
        raise NonFinite(first, found[0].what, sorted({place for one in found for place in one.places}))

    def _copy_to_host(self, step: int, norm: torch.Tensor) -> None:
        self._values[-1].copy_(norm)
        event = None
        if self._values.device.type == "cpu":
            values = self._values.clone()
        else:
            values = (
                self._free_buffers.pop() if self._free_buffers else torch.empty(self._values.shape, pin_memory=True)
            )
            values.copy_(self._values, non_blocking=True)
            event = torch.Event(self._values.device.type)
            event.record()
        self._copies.append(_HostCopy(step, self._places, values, event))

    def _inspect(self, copy: _HostCopy) -> None:
        values = copy.values.numpy().copy()
        if copy.event is not None:
            self._free_buffers.append(copy.values)
        bad = np.flatnonzero(~np.isfinite(values))
        if self._detection is not None or not len(bad):
            return
        rounds = [number for number in bad.tolist() if number < len(copy.places)]
        places = [place for number in rounds or range(len(copy.places)) for place in copy.places[number]]
        self._detection = _Detection(copy.step, bool(rounds), float(values[bad[0]]), places)
