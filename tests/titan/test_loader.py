import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.exposure import ExposureCounter, effective_context
from exact_titan.packing import pack
from exact_titan.sampling.order import WindowOrder
from exact_titan.titan.loader import PackedDataLoader
from tests.support import pack_lengths
from tests.support import word_tokenizer as write_word_tokenizer


def loader(
    dataset: PackedDataset, rank: int = 0, ranks: int = 1, batch: int = 1, rounds: int | None = None, **options
) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=str(dataset.folder), **options)
    built = config.build(
        dp_world_size=ranks, dp_rank=rank, seq_len=dataset.window, local_batch_size=batch, tokenizer=None
    )
    built.rounds_per_step = rounds
    return built


def step_inputs(
    dataset: PackedDataset, ranks: int, batch: int, global_batch: int, steps: int, *, known: bool, windows: int = 0
) -> list[list]:
    """Return the sorted windows (tuples of ids) of every optimizer step. ``known``: the loaders know the step size."""
    rounds = global_batch // (ranks * batch)
    loaders = [loader(dataset, rank, ranks, batch, rounds if known else None) for rank in range(ranks)]
    for one in loaders:
        one.load_state_dict(one.state_dict() | {"windows": windows})
    streams = [iter(one) for one in loaders]
    return [
        sorted(
            tuple(row.tolist()) for stream in streams for inputs, _ in islice(stream, rounds) for row in inputs["input"]
        )
        for _ in range(steps)
    ]


@pytest.mark.parametrize("known", [False, True])
def test_every_step_trains_on_the_same_windows_on_any_number_of_ranks_and_from_any_step(dataset, known):
    expected = step_inputs(dataset, ranks=1, batch=1, global_batch=8, steps=20, known=False)
    assert len({tuple(step) for step in expected}) > 10
    for ranks, batch in ((1, 8), (2, 1), (2, 4), (4, 2), (8, 1)):
        assert step_inputs(dataset, ranks, batch, global_batch=8, steps=20, known=known) == expected
        assert step_inputs(dataset, ranks, batch, 8, steps=3, known=known, windows=8 * 17) == expected[17:]


def pairs_RS(dataset: PackedDataset, ranks: int, batch: int, rounds: int, steps: int, **options) -> torch.Tensor:
    """Return the sum of squared segment lengths of each rank and microbatch: ``[ranks, steps * rounds]``."""
    streams = [islice(loader(dataset, rank, ranks, batch, rounds, **options), steps * rounds) for rank in range(ranks)]
    return torch.tensor([[int((i["cu_seqlens"].diff().long() ** 2).sum()) for i, _ in stream] for stream in streams])


@pytest.mark.parametrize(("ranks", "batch", "rounds"), [(2, 1, 4), (4, 1, 2), (2, 4, 1), (4, 2, 2)])
def test_the_microbatches_of_a_step_have_balanced_attention_work(dataset, ranks, batch, rounds):
    level = pairs_RS(dataset, ranks, batch, rounds, steps=20)
    in_order = pairs_RS(dataset, ranks, batch, rounds, steps=20, balance=False)
    assert level.sum() == in_order.sum()

    def excess(work_RS: torch.Tensor) -> float:
        return float(work_RS.amax(0).sum() / work_RS.double().mean(0).sum()) - 1

    assert excess(level) < 0.7 * excess(in_order)
    # All loaders report the same imbalance.
    for rank in range(ranks):
        one = loader(dataset, rank, ranks, batch, rounds)
        list(islice(one, 20 * rounds))
        assert one.imbalance.take() == pytest.approx(1 + excess(level))
        assert one.imbalance.take() == 1


def test_without_balance_the_windows_of_a_step_are_in_order(dataset):
    for rank in range(2):
        for (one, _), (other, _) in zip(
            islice(loader(dataset, rank, 2, 2, rounds=3, balance=False), 12), loader(dataset, rank, 2, 2), strict=False
        ):
            assert torch.equal(one["input"], other["input"])


def test_a_state_inside_a_step_is_the_start_of_the_step(dataset):
    one = loader(dataset, 0, ranks=2, batch=1, rounds=4)
    stream = iter(one)
    states = [one.state_dict()["windows"] for _ in islice(stream, 9)]
    assert states == [0, 0, 0, 8, 8, 8, 8, 16, 16]
    again = loader(dataset, 0, ranks=2, batch=1, rounds=4)
    again.load_state_dict(one.state_dict())
    unbroken = [inputs["input"] for inputs, _ in islice(loader(dataset, 0, ranks=2, batch=1, rounds=4), 12)]
    for (inputs, _), expected in zip(again, unbroken[8:], strict=False):
        assert torch.equal(inputs["input"], expected)


def test_batches_are_the_datasets_windows(dataset):
    inputs, labels = next(iter(loader(dataset, batch=3)))
    (order,) = loader(dataset).order.orders
    rows = [dataset[order[place]] for place in range(3)]
    assert torch.equal(inputs["input"], torch.stack([row["input"] for row in rows]))
    assert torch.equal(inputs["positions"], torch.stack([row["positions"] for row in rows]))
    assert torch.equal(labels, torch.stack([row["labels"] for row in rows]))


def test_varlen_metadata_are_the_borders_in_the_flattened_batch(dataset):
    for inputs, _ in islice(loader(dataset, batch=3), 30):
        starts = (inputs["positions"].flatten() == 0).nonzero().flatten().tolist()
        borders = [*starts, inputs["input"].numel()]
        assert inputs["cu_seqlens"].dtype == torch.int32
        assert inputs["cu_seqlens"].tolist() == borders
        assert inputs["max_seqlen"] == max(end - start for start, end in pairwise(borders))


def test_padding_gives_no_targets(tmp_path):
    write_word_tokenizer(tmp_path / "tokenizer.json", 9)
    # No two documents fit into one window. Every third document fills a window and has a rest.
    texts = [" ".join(["7"] * length) for length in (40, 35, 100)] * 4
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pack([tmp_path / "d.jsonl"], tokenizer=tmp_path, seq_len=64, out=tmp_path / "packed", policy="best_fit")
    padded = PackedDataset(tmp_path / "packed")
    counter = ExposureCounter(padded.buckets)
    short = 0
    for inputs, labels in loader(padded, batch=2, infinite=False):
        counter.add(effective_context(inputs["positions"]), labels != -100)
        short += int((labels == -100).any(1).sum())
        starts = (inputs["positions"].flatten() == 0).nonzero().flatten().tolist()
        assert inputs["cu_seqlens"].tolist() == [*starts, inputs["input"].numel()]
    assert short == 12
    assert len(padded) == 16
    assert torch.equal(counter.counts, padded.counts)


def test_without_varlen_metadata_a_batch_has_only_torchtitans_inputs(dataset):
    inputs, _ = next(iter(loader(dataset, varlen_metadata=False)))
    assert set(inputs) == {"input", "positions"}


@pytest.mark.parametrize("rounds", [None, 1, 4])
def test_a_finite_pass_holds_every_window_once_and_the_same_number_of_batches_on_every_rank(dataset, rounds):
    ranks, batch = 3, 2
    batches = [list(loader(dataset, rank, ranks, batch, rounds, split="val", infinite=False)) for rank in range(ranks)]
    assert {len(one) for one in batches} == {2}
    val = PackedDataset(dataset.folder, "val")
    rows = [
        (inputs["input"][row].tolist(), labels[row].tolist())
        for one in batches
        for inputs, labels in one
        for row in range(batch)
    ]
    filled = [row for row in rows if all(label == -100 for label in row[1])]
    assert len(rows) - len(filled) == len(val)
    expected = sorted((val[k]["input"].tolist(), val[k]["labels"].tolist()) for k in range(len(val)))
    assert sorted(row for row in rows if row not in filled) == expected


def test_a_state_resumes_on_another_number_of_ranks(dataset):
    one = loader(dataset, batch=2)
    stream = iter(one)
    for _ in range(100):
        next(stream)
    state = one.state_dict()
    assert state["windows"] == 200
    expected = next(stream)[0]["input"]
    for rank in range(2):
        other = loader(dataset, rank, ranks=2, batch=1)
        other.load_state_dict(state)
        assert torch.equal(next(iter(other))[0]["input"][0], expected[rank])


CHANGED = {
    "dataset": ({"fingerprint": "other"}, "fingerprint other, not "),
    "seed": ({"seed": 7}, "seed 7, not 0"),
    "global_batch_size": ({"global_batch_size": 12}, "global_batch_size 12, not 8"),
    "seq_len": ({"seq_len": 128}, "seq_len 128, not 64"),
}


def resumed(dataset: PackedDataset, changes: list[str], *, allow: list[str]) -> PackedDataLoader:
    """Return a loader that resumes at window 24 from a state with ``changes``. Its steps have 8 windows."""
    one = loader(dataset, batch=2, allow_changed=allow)
    one.rounds_per_step = 4
    state = one.state_dict() | {"windows": 24}
    for name in changes:
        state |= CHANGED[name][0]
    one.load_state_dict(state)
    return one


@pytest.mark.parametrize("name", CHANGED)
def test_a_state_with_other_data_order_or_steps_is_refused_unless_allowed(dataset, name):
    others = [other for other in CHANGED if other != name]
    for allow in ([], others):
        with pytest.raises(InputError) as refused:
            resumed(dataset, [name], allow=allow)
        line = str(refused.value)
        assert f"the checkpoint was trained with {CHANGED[name][1]}" in line
        assert line.endswith(f"or allow the change with --dataloader.allow_changed {','.join([*allow, name])}")
    # A new order starts at its first window. A new step size resumes in the same order.
    expected = 0 if name in ("dataset", "seed") else 24
    assert resumed(dataset, [name], allow=[name]).consumed == expected
    assert resumed(dataset, [], allow=[name]).consumed == 24


def test_one_line_names_all_refused_changes(dataset):
    with pytest.raises(InputError, match=r"fingerprint other.*; seed 7, not 0: .*allow_changed seq_len,dataset,seed$"):
        resumed(dataset, ["dataset", "seed", "seq_len"], allow=["seq_len"])


def test_an_unknown_change_is_refused(dataset):
    with pytest.raises(InputError, match="allow_changed has 'batch': it takes any of dataset, seed, global_batch_size"):
        loader(dataset, allow_changed=["seed", "batch"])


def test_a_loader_without_a_step_size_does_not_compare_step_sizes(dataset):
    state = loader(dataset, batch=2).state_dict()
    assert state["global_batch_size"] == 0
    one = loader(dataset)
    one.rounds_per_step = 4
    one.load_state_dict(state | {"windows": 6})
    assert one.consumed == 6


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> PackedDataset:
    return pack_lengths(tmp_path_factory.mktemp("small"), [100] * 20, seq_len=64)


def test_a_state_of_a_small_dataset_keeps_the_version_of_its_order(small):
    new = loader(small)
    assert new.order.version == 2
    state = new.state_dict()
    assert state["fingerprint"] == f"{small.manifest.fingerprint};order=2"
    resumed = loader(small)
    resumed.load_state_dict(state | {"windows": 8})
    assert (resumed.consumed, resumed.order.version) == (8, 2)

    old_state = state | {"windows": 8, "fingerprint": small.manifest.fingerprint}
    old = loader(small)
    old.load_state_dict(old_state)
    assert old.state_dict() == old_state
    places = range(8, 8 + 2 * len(small))
    expected = WindowOrder(len(small), small.manifest.fingerprint, 0, version=1)
    assert [old.order.window(place) for place in places] == [(0, expected[place]) for place in places]
    assert [new.order.window(place) for place in places] != [old.order.window(place) for place in places]


def test_a_new_order_of_a_small_dataset_has_the_new_version(small):
    state = loader(small).state_dict() | {"windows": 8, "fingerprint": "other"}
    one = loader(small, allow_changed=["dataset"])
    one.load_state_dict(state)
    assert (one.consumed, one.order.version) == (0, 2)


def test_a_state_of_a_later_order_is_refused(small):
    state = loader(small).state_dict() | {"fingerprint": f"{small.manifest.fingerprint};order=3"}
    with pytest.raises(InputError, match=r"version 3 of the order of the windows.*resume with the exact_titan that"):
        loader(small).load_state_dict(state)


def test_a_large_or_unshuffled_dataset_has_one_order_only(dataset, small):
    assert loader(dataset).state_dict()["fingerprint"] == dataset.manifest.fingerprint
    assert loader(small, infinite=False).state_dict()["fingerprint"] == small.manifest.fingerprint


@pytest.fixture(scope="module")
def mixed(dataset, tmp_path_factory) -> str:
    """Path of a mixture: ``dataset`` and a smaller dataset of other documents."""
    other = pack_lengths(tmp_path_factory.mktemp("other"), [150] * 20, seq_len=64, seed=5)
    return f"{dataset.folder}=5,{other.folder}=2"


def mixed_loader(mixed: str, rank: int = 0, ranks: int = 1, batch: int = 1, **options) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=mixed, **options)
    return config.build(dp_world_size=ranks, dp_rank=rank, seq_len=64, local_batch_size=batch, tokenizer=None)


def test_every_window_of_each_mixed_dataset_comes_once_in_its_epoch(mixed):
    one = mixed_loader(mixed)
    seen: list[list[int]] = [[] for _ in one.order.orders]
    for place in range(2000):
        index, turn = one.mixture[place]
        seen[index].append(one.order.orders[index][turn])
    for windows, dataset in zip(seen, one.mixture.datasets, strict=True):
        epochs = [windows[start : start + len(dataset)] for start in range(0, len(windows), len(dataset))][:-1]
        assert len(epochs) >= 2
        for epoch in epochs:
            assert sorted(epoch) == list(range(len(dataset)))
        assert epochs[0] != epochs[1]


def test_a_mixtures_steps_hold_the_same_windows_on_any_number_of_ranks_and_from_any_place(mixed):
    datasets = mixed_loader(mixed).mixture.datasets
    expected = [inputs["input"] for inputs, _ in islice(mixed_loader(mixed, batch=4), 30)]
    assert {tuple(datasets[0][k]["input"].tolist()) for k in range(len(datasets[0]))}.isdisjoint(
        tuple(datasets[1][k]["input"].tolist()) for k in range(len(datasets[1]))
    )
    for ranks in (1, 2, 4):
        loaders = [mixed_loader(mixed, rank, ranks, 4 // ranks) for rank in range(ranks)]
        for one in loaders:
            one.load_state_dict(one.state_dict() | {"windows": 4 * 20})
        streams = [iter(one) for one in loaders]
        for step in range(20, 30):
            assert torch.equal(torch.cat([next(stream)[0]["input"] for stream in streams]), expected[step])


def test_a_mixture_of_one_is_the_dataset(dataset):
    one, alone = mixed_loader(f"{dataset.folder}=3"), loader(dataset)
    assert one.state_dict() == alone.state_dict()
    for (inputs, _), (expected, _) in zip(islice(one, 150), alone, strict=False):
        assert torch.equal(inputs["input"], expected["input"])


def test_a_state_of_another_mixture_is_refused_by_name(dataset, mixed):
    state = mixed_loader(mixed).state_dict()
    assert set(state) == {"windows", "fingerprint", "seed", "global_batch_size", "seq_len"}
    for other in (mixed.replace("=5", "=3"), str(dataset.folder)):
        with pytest.raises(InputError, match=f"trained with .*share 5/7 of {dataset.folder}, not"):
            mixed_loader(other).load_state_dict(state)
    mixed_loader(mixed.replace("=5", "=10").replace("=2", "=4")).load_state_dict(state)


def test_a_finite_pass_without_weights_holds_every_window_of_every_dataset_once(mixed):
    paths = ",".join(entry.rpartition("=")[0] for entry in mixed.split(","))
    one = mixed_loader(paths, batch=3, infinite=False)
    rows = [tuple(row.tolist()) for inputs, labels in one for row in inputs["input"][(labels != -100).any(1)]]
    expected = [tuple(d[k]["input"].tolist()) for d in one.mixture.datasets for k in range(len(d))]
    assert rows == expected


def test_a_finite_pass_by_weight_ends_when_a_dataset_has_no_window_left(mixed):
    one = mixed_loader(mixed, infinite=False)
    found = [tuple(inputs["input"].flatten().tolist()) for inputs, _ in one]
    endless = [tuple(inputs["input"].flatten().tolist()) for inputs, _ in islice(mixed_loader(mixed), len(found) + 1)]
    assert found == endless[:-1]
    assert len(set(found)) == len(found) == one.mixture.places_once()
    assert endless[-1] in found


def test_infinite_epochs_of_several_datasets_need_weights(mixed):
    paths = ",".join(entry.rpartition("=")[0] for entry in mixed.split(","))
    with pytest.raises(InputError, match="to mix datasets, give each dataset a weight"):
        mixed_loader(paths)


def test_another_window_length_is_refused(dataset):
    config = PackedDataLoader.Config(dataset_path=str(dataset.folder))
    with pytest.raises(InputError, match=r"windows of 64 tokens, but training\.seq_len is 128"):
        config.build(dp_world_size=1, dp_rank=0, seq_len=128, local_batch_size=1, tokenizer=None)


def test_a_missing_dataset_is_refused(tmp_path: Path):
    for path, message in (("", "dataset_path is empty"), (str(tmp_path), "is not a packed dataset")):
        config = PackedDataLoader.Config(dataset_path=path)
        with pytest.raises(InputError, match=message):
            config.build(dp_world_size=1, dp_rank=0, seq_len=64, local_batch_size=1, tokenizer=None)
