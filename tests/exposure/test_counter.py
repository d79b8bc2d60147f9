import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from exact_titan.exposure import Buckets, ExposureCounter, effective_context
from tests import warm_ranks


def positions_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    positions = torch.randint(0, 64, (3, 50), generator=generator)
    valid = torch.rand(3, 50, generator=generator) < 0.8
    return positions, valid


def by_hand(ranks: list[int], times: int = 1) -> list[int]:
    counts = [0] * 4
    for rank in ranks:
        positions, valid = positions_of(rank)
        for position, is_valid in zip(positions.flatten().tolist(), valid.flatten().tolist(), strict=True):
            context = position + 1
            counts[0 if context < 8 else 1 if context < 16 else 2 if context < 32 else 3] += is_valid
    return [count * times for count in counts]


def test_counts_only_supervised_targets():
    counter = ExposureCounter(Buckets(64))
    positions, valid = positions_of(0)
    counter.add(effective_context(positions), valid)
    assert counter.counts.dtype == torch.int64
    assert counter.counts.tolist() == by_hand([0])


def test_reducing_again_adds_nothing():
    counter = ExposureCounter(Buckets(64))
    positions, valid = positions_of(0)
    counter.add(effective_context(positions), valid)
    counter.reduce()
    counter.reduce()
    assert counter.counts.tolist() == by_hand([0])


def test_state_goes_on_where_it_was():
    counter = ExposureCounter(Buckets(64))
    positions, valid = positions_of(0)
    counter.add(effective_context(positions), valid)
    again = ExposureCounter(Buckets(64))
    again.load_state_dict(counter.state_dict())
    again.add(effective_context(positions), valid)
    assert again.counts.tolist() == by_hand([0], times=2)


def test_state_of_another_window_is_refused():
    with pytest.raises(ValueError, match="counts 4 buckets"):
        ExposureCounter(Buckets(1024)).load_state_dict(ExposureCounter(Buckets(64)).state_dict())


def main(folder: Path) -> None:
    """What each of two ranks does."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    counter = ExposureCounter(Buckets(64))
    positions, valid = positions_of(rank)
    counter.add(effective_context(positions), valid)
    counter.start_reduce()
    # Targets that are counted during a reduction belong to the next reduction. No target is lost.
    counter.add(effective_context(positions), valid)
    assert counter.counts.tolist() == by_hand([rank], times=2)
    assert counter.finish_reduce()
    assert not counter.finish_reduce()
    assert counter.reduced.tolist() == by_hand([0, 1])
    counter.reduce()
    (folder / f"{rank}.json").write_text(json.dumps(counter.counts.tolist()))
    dist.destroy_process_group()


def test_two_ranks_sum_to_the_count_of_both(tmp_path):
    done = warm_ranks.run(2, "tests.exposure.test_counter", tmp_path, cwd=tmp_path)
    assert done.codes == [0, 0], done.stderr
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == by_hand([0, 1], times=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
