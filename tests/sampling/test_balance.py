import itertools

import numpy as np
import pytest

from exact_titan.dataset import PackedDataset
from exact_titan.packing import pack
from exact_titan.sampling.balance import attention_work, deal


@pytest.mark.parametrize("policy", ["concat", "best_fit"])
def test_work_is_that_of_the_borders_that_attention_gets(dataset, tmp_path, policy):
    """The dataset has several shards, cut documents and padded windows."""
    source = dataset.folder.parent
    pack(
        [source / "documents.jsonl"],
        tokenizer=source / "tokenizer.json",
        seq_len=64,
        out=tmp_path / "packed",
        policy=policy,
        shard_tokens=1000,
    )
    packed = PackedDataset(tmp_path / "packed")
    assert len(packed.record.shards) > 3
    assert packed.record.padding > 0
    expected = [int((packed[k]["cu_seqlens"].diff().long() ** 2).sum()) for k in range(len(packed))]
    assert [attention_work(packed, k) for k in range(len(packed))] == expected


@pytest.mark.parametrize(("rounds", "ranks", "batch"), [(1, 1, 1), (1, 8, 1), (4, 8, 1), (1, 4, 8), (3, 2, 4)])
def test_every_window_is_dealt_once_and_the_same_again(rounds, ranks, batch):
    work = np.random.default_rng(0).lognormal(0, 1, rounds * ranks * batch).tolist()
    dealt = deal(work, ranks=ranks, batch=batch)
    assert dealt.shape == (rounds, ranks, batch)
    assert sorted(dealt.flat) == list(range(len(work)))
    assert (np.diff(dealt, axis=2) > 0).all()
    assert np.array_equal(deal(work, ranks=ranks, batch=batch), dealt)


def dealt_plainly(work: list[int], ranks: int, batch: int) -> list[list[list[int]]]:
    """Return the windows of each round, rank and microbatch, by the three steps of the docstring, one by one."""
    microbatches: list[list[int]] = [[] for _ in range(len(work) // batch)]

    def total(microbatch: list[int]) -> int:
        return sum(work[window] for window in microbatch)

    for window in sorted(range(len(work)), key=lambda window: -work[window]):
        min((one for one in microbatches if len(one) < batch), key=total).append(window)
    microbatches.sort(key=lambda one: -total(one))
    rounds, of_rank = [], [0] * ranks
    for first in range(0, len(microbatches), ranks):
        round_: list[list[int]] = [[]] * ranks
        for rank, one in zip(sorted(range(ranks), key=of_rank.__getitem__), microbatches[first:], strict=False):
            round_[rank] = sorted(one)
            of_rank[rank] += total(one)
        rounds.append(round_)
    return rounds


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [4, 2**40])
def test_windows_are_dealt_as_the_plain_algorithm_does(batch, most):
    """Few different numbers give many ties, and large numbers need all their digits."""
    rng = np.random.default_rng(batch)
    for ranks, rounds in ((1, 5), (2, 3), (3, 4), (8, 2), (16, 1)):
        work = rng.integers(1, most, ranks * rounds * batch)
        expected = dealt_plainly(work.tolist(), ranks, batch)
        assert deal(work, ranks=ranks, batch=batch).tolist() == expected
        assert deal(work.tolist(), ranks=ranks, batch=batch).tolist() == expected


def test_windows_alike_are_dealt_in_order():
    assert deal([7] * 6, ranks=3, batch=1).tolist() == [[[0], [1], [2]], [[3], [4], [5]]]


def heaviest_sum(work: np.ndarray, dealt: np.ndarray) -> int:
    return int(work[dealt].sum(axis=2).max(axis=1).sum())


def test_with_one_window_a_microbatch_no_other_rounds_wait_less():
    """Compare with every division of six windows into rounds of two and of three."""
    for seed in range(20):
        work = np.random.default_rng(seed).integers(1, 100, 6)
        for ranks in (2, 3):
            dealt = deal(work.tolist(), ranks=ranks, batch=1)
            orders = (np.array(order).reshape(-1, ranks, 1) for order in itertools.permutations(range(6)))
            assert heaviest_sum(work, dealt) == min(heaviest_sum(work, order) for order in orders)


@pytest.mark.parametrize(
    ("rounds", "ranks", "batch", "waiting", "step"),
    [(1, 8, 1, 1.0, 1.0), (4, 8, 1, 0.4, 0.25), (1, 8, 4, 0.2, 0.2), (4, 8, 4, 0.1, 0.1)],
)
def test_how_far_random_windows_come_out_level(rounds, ranks, batch, waiting, step):
    """The excess of the heaviest rank over the mean, in a microbatch and in the step, relative to the given order."""
    work = np.random.default_rng(0).lognormal(0, 0.5, (100, rounds * ranks * batch))
    dealt = np.stack([row[deal(row.tolist(), ranks=ranks, batch=batch)] for row in work]).sum(axis=3)
    in_order = work.reshape(100, rounds, ranks, batch).sum(axis=3)

    def excess(work_: np.ndarray, axis: int) -> float:
        return (work_.max(axis=axis) / work_.mean(axis=axis) - 1).mean()

    assert excess(dealt, 2) <= waiting * excess(in_order, 2)
    assert excess(dealt.sum(axis=1), 1) <= step * excess(in_order.sum(axis=1), 1)
