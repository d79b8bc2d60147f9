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

    first = ranks[0].scalars(10, summed)
    assert first == pytest.approx(
        {
            "step_time/data(s)": 0.3,
            "step_time/forward_backward(s)": 2.0,
            "step_time/optimizer(s)": 0.5,
            "step_time/checkpoint(s)": 0.0,
            "imbalance/attention": 1.0,
            "imbalance/data(s)": 0.1,
            "progress/tokens_left": 990 * 64,
        }
    )
    now = 36.0  # three seconds per step since the first log
    second = ranks[0].scalars(22, summed)
    assert second["progress/tokens_left"] == 978 * 64
    assert second["progress/hours_left"] == pytest.approx(978 * 3 / 3600)
    now = 48.0
    assert ranks[0].scalars(1000, summed)["progress/hours_left"] == 0
