import pytest
import torch

from exact_titan.titan import step_clock
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.step_clock import PARTS, StepClock


class Time:
    """A replacement for the clock of the host. Its ``sleep`` only advances the clock."""

    now = 5.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = Time()


class FakeEvent:
    """A replacement for an event of a device. The device is 100 seconds later than the host."""

    read = 0

    def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
        assert device.type == "cuda"
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter() + 100

    def synchronize(self) -> None:
        FakeEvent.read += 1

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000 * (end.time - self.time)


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "time", time)


@pytest.fixture(params=["cpu", "cuda"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StepClock:
    monkeypatch.setattr(step_clock.torch, "Event", FakeEvent)
    FakeEvent.read = 0
    return StepClock(torch.device(request.param))


def test_parts_are_seconds_per_step_and_only_take_waits_for_the_device(clock: StepClock) -> None:
    for _ in range(2):
        clock.steps += 1
        with clock.host("data"):
            time.sleep(0.02)
        for _ in range(2):
            clock.begin("forward_backward")
            time.sleep(0.03)
            clock.begin("optimizer")
        time.sleep(0.02)
        with clock.host("checkpoint"):
            time.sleep(0.05)
        time.sleep(0.02)
        clock.end()
        time.sleep(0.05)  # this time belongs to no part
        clock.end()
    assert FakeEvent.read == 0
    seconds = dict(zip(PARTS, clock.take(), strict=True))
    expected = {"data": 0.02, "forward_backward": 0.06, "optimizer": 0.04, "checkpoint": 0.05}
    assert seconds == pytest.approx(expected)
    assert clock.take() == [0, 0, 0, 0]


def test_the_time_of_a_checkpoint_does_not_belong_to_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = object.__new__(ResumableCheckpoints)
    checkpoints.enable, checkpoints.clock = True, StepClock(torch.device("cpu"))
    monkeypatch.setattr(
        "torchtitan.components.checkpointer.dcp.CheckpointManager._maybe_wait_for_staging", lambda self: time.sleep(0.1)
    )
    checkpoints.clock.steps = 1
    checkpoints.clock.begin("optimizer")
    checkpoints.maybe_wait_for_staging()
    checkpoints.clock.end()
    seconds = dict(zip(PARTS, checkpoints.clock.take(), strict=True))
    assert seconds == pytest.approx({"data": 0, "forward_backward": 0, "optimizer": 0, "checkpoint": 0.1})
    checkpoints.enable = False  # __del__ must not close this incomplete object
