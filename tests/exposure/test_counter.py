import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from exact_titan.exposure import Buckets, ExposureCounter, bucket_weights, effective_context, prior_counts
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


WINDOW = 131_072


def packed_counts(windows: int, *, long: float, seed: int) -> torch.Tensor:
    """Return the bucket counts of windows of 128K.

    Args:
        windows: number of windows.
        long: share of the windows with one document of 128K. Four times as many windows have 4 documents of 32K, and
            half of the other windows have 8 documents of 16K. The documents of the last windows have 2K.
        seed: seed of the draw.
    """
    drawn = torch.rand(windows, generator=torch.Generator().manual_seed(seed))
    bounds = torch.tensor([long, 5 * long, 0.5 + 2.5 * long])
    windows_of_kind = torch.bincount(torch.bucketize(drawn, bounds), minlength=4).tolist()
    buckets = Buckets(WINDOW)
    counts = torch.zeros(len(buckets), dtype=torch.int64)
    for number, documents in zip(windows_of_kind, (1, 4, 8, 64), strict=True):
        counts += number * buckets.count_segments(torch.tensor([WINDOW // documents] * documents))
    return counts


def extra(counts: torch.Tensor) -> torch.Tensor:
    """Return the extra weight of each bucket of the tail."""
    bounds = Buckets(WINDOW).lower_bounds
    return bucket_weights(counts, bounds, threshold=8192)[bounds >= 8192] - 1


@pytest.mark.parametrize("seed", range(10))
def test_refreshed_weights_after_5_steps_at_128k_are_close_to_the_weights_of_the_dataset(seed):
    """The extra weights differ by less than 5 %. Without the prior they differ by more than 20 %."""
    of_dataset = packed_counts(3000, long=0.02, seed=100)
    after_5_steps = packed_counts(5 * 4, long=0.02, seed=seed)
    fixed = extra(of_dataset)
    torch.testing.assert_close(extra(prior_counts(of_dataset, window=WINDOW) + after_5_steps), fixed, rtol=0.05, atol=0)
    assert (extra(after_5_steps) / fixed - 1).abs().max() > 0.2


def test_refreshed_weights_converge_to_the_distribution_of_the_training():
    """The training has five times as many long documents as the dataset."""
    of_dataset, of_training = (packed_counts(2000, long=long, seed=100) for long in (0.02, 0.1))
    prior = prior_counts(of_dataset, window=WINDOW)
    assert prior.sum().item() == pytest.approx(1000 * WINDOW)
    distance = [
        (extra(prior + times * of_training) - extra(of_training)).abs().max().item() for times in (0, 1, 4, 16, 64)
    ]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > 0.2
    assert distance[-1] < 0.01


def test_the_prior_of_a_small_dataset_is_its_own_counts():
    counts = torch.tensor([70, 20, 10])
    assert prior_counts(counts, window=64).tolist() == [70, 20, 10]
    assert prior_counts(torch.zeros(3, dtype=torch.int64), window=64).tolist() == [0, 0, 0]
