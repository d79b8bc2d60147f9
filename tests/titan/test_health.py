import pytest
import torch
import torch.distributed as dist

from exact_titan.sampling.balance import Imbalance
from exact_titan.titan import health
from exact_titan.titan.health import Health


class Clock:
    """Stands in for a rank's step clock: data, forward and backward, optimizer, checkpoint."""

    def __init__(self, rank: int) -> None:
        self.times = [0.1 * (rank + 1), 2.0 - rank, 0.5, 0.0]

    def take(self) -> list[float]:
        return self.times


def test_the_slowest_of_three_ranks_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(health.time, "perf_counter", lambda: now)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    imbalance, ranks = Imbalance(), []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        ranks.append(Health(Clock(rank), imbalance, steps=1000, tokens_per_step=64))
    summed = torch.tensor([one.local_times() for one in ranks]).sum(dim=0).tolist()

    first = ranks[0].pace(10, summed)
    expected = {"data": 0.3, "forward_backward": 2.0, "optimizer": 0.5, "checkpoint": 0.0}
    assert first.step_seconds == pytest.approx(expected)
    assert first.imbalance_attention == 1
    assert first.imbalance_data_seconds == pytest.approx(0.1)
    assert (first.tokens_left, first.hours_left) == (990 * 64, None)
    now = 36.0  # three seconds per step since the first log
    second = ranks[0].pace(22, summed)
    assert second.tokens_left == 978 * 64
    assert second.hours_left == pytest.approx(978 * 3 / 3600)
    now = 48.0
    assert ranks[0].pace(1000, summed).hours_left == 0
