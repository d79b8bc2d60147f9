"""Notices a loss or a gradient that is not finite, without a wait for the device in any step."""

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils

from exact_titan.runs.exit_codes import Ended, ExitCode


class NotFinite(Ended):
    """Raised on all ranks when a loss or the gradient is NaN or infinite.

    Attributes:
        step: the first such optimizer step.
        what: what is not finite, such as ``the loss is nan``.
        places: of the run, those of the step's windows that it was seen in; all of them where the loss was finite.
    """

    def __init__(self, step: int, what: str, places: list[int]) -> None:
        super().__init__(ExitCode.NOT_FINITE)
        self.step, self.what, self.places = step, what, places


@dataclass(frozen=True)
class _Sighting:
    step: int
    in_loss: bool
    value: float
    places: list[int]


@dataclass(frozen=True)
class _Copy:
    """One step's numbers on their way to the host; there when the event is over."""

    step: int
    places: list[list[int]]
    values: torch.Tensor
    event: torch.Event | None


class FiniteWatch:
    """Looks at every microbatch's loss and at every gradient's norm.

    Each step's numbers, a few bytes, are copied to the host behind the step, and looked at before a later step when
    they have arrived: as a rule one step later, and at the latest before a save, a stop or the end. No step waits for
    them and none has a collective for them. The weights are poisoned by then, so nothing is saved any more.

    Args:
        device: of the training.
        rounds: microbatches of a step on this rank.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        # The losses, and behind them the gradient's norm.
        self._values = torch.zeros(rounds + 1, device=device)
        self._places: list[list[int]] = []
        self._losses = 0
        self._in_step = False
        self._copies: deque[_Copy] = deque()
        self._free: list[torch.Tensor] = []
        self._sighting: _Sighting | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around optimizer step ``step``, whose gradient's norm torchtitan tells nobody."""
        self._places, self._losses, self._in_step = [], 0, True
        stock = dist_utils.clip_grad_norm_

        def clip(*args, **kwargs) -> torch.Tensor:
            norm = stock(*args, **kwargs)
            self._send(step, norm)
            return norm

        dist_utils.clip_grad_norm_ = clip
        try:
            yield
        finally:
            dist_utils.clip_grad_norm_ = stock
            self._in_step = False

    def add_batch(self, places: list[int]) -> None:
        """The places of the run that the step's next microbatch holds."""
        if self._in_step:
            self._places.append(places)

    def add_loss(self, loss: torch.Tensor) -> None:
        """The loss of the step's next microbatch, in the order of :meth:`add_batch`; stays on the device."""
        if self._in_step:
            self._values[self._losses].copy_(loss.detach())
            self._losses += 1

    def seen(self) -> str | None:
        """What has been seen on this rank, such as ``the loss is nan at step 12``, in all that has arrived."""
        while self._copies and (self._copies[0].event is None or self._copies[0].event.query()):
            self._look(self._copies.popleft())
        if self._sighting is None:
            return None
        return f"{_what(self._sighting)} at step {self._sighting.step}"

    def check(self) -> None:
        """Look at every step up to the last one, and wait for it: a collective.

        Raises:
            NotFinite: on all ranks, if it was seen on any.
        """
        while self._copies:
            copy = self._copies.popleft()
            if copy.event is not None:
                copy.event.synchronize()
            self._look(copy)
        sightings: list[_Sighting | None] = [None] * dist.get_world_size()
        dist.all_gather_object(sightings, self._sighting)
        known = [one for one in sightings if one is not None]
        if not known:
            return
        first = min(one.step for one in known)
        known = [one for one in known if one.step == first]
        # A rank whose own losses are finite has seen the gradient that another rank's loss has made.
        known = [one for one in known if one.in_loss] or known
        raise NotFinite(first, _what(known[0]), sorted(place for one in known for place in one.places))

    def _send(self, step: int, norm: torch.Tensor) -> None:
        self._values[-1].copy_(norm)
        event = None
        if self._values.device.type == "cpu":
            values = self._values.clone()
        else:
            values = self._free.pop() if self._free else torch.empty(self._values.shape, pin_memory=True)
            values.copy_(self._values, non_blocking=True)
            event = torch.Event(self._values.device.type)
            event.record()
        self._copies.append(_Copy(step, self._places, values, event))

    def _look(self, copy: _Copy) -> None:
        values = copy.values.numpy().copy()
        if copy.event is not None:
            self._free.append(copy.values)
        bad = np.flatnonzero(~np.isfinite(values))
        if self._sighting is not None or not len(bad):
            return
        rounds = [number for number in bad.tolist() if number < len(copy.places)]
        places = [place for number in rounds or range(len(copy.places)) for place in copy.places[number]]
        self._sighting = _Sighting(copy.step, bool(rounds), float(values[bad[0]]), places)


def _what(sighting: _Sighting) -> str:
    return f"the {'loss' if sighting.in_loss else 'norm of the gradient'} is {sighting.value}"
