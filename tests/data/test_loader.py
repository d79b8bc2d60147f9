from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from exact_titan.data import PackedDataset
from exact_titan.data.loader import PackedDataLoader
from exact_titan.errors import InputError


def loader(dataset: PackedDataset, rank: int = 0, ranks: int = 1, batch: int = 1, **options) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=str(dataset.folder), **options)
    return config.build(
        dp_world_size=ranks, dp_rank=rank, seq_len=dataset.window, local_batch_size=batch, tokenizer=None
    )


def step_inputs(dataset: PackedDataset, ranks: int, batch: int, global_batch: int, steps: int) -> list[set]:
    """The set of windows (as tuples of ids) of every optimizer step."""
    rounds = global_batch // (ranks * batch)
    streams = [iter(loader(dataset, rank, ranks, batch)) for rank in range(ranks)]
    return [
        {tuple(row.tolist()) for stream in streams for inputs, _ in islice(stream, rounds) for row in inputs["input"]}
        for _ in range(steps)
    ]


def test_every_step_trains_on_the_same_windows_on_any_number_of_ranks(dataset):
    expected = step_inputs(dataset, ranks=1, batch=1, global_batch=8, steps=20)
    assert len({frozenset(step) for step in expected}) > 10
    for ranks, batch in ((1, 8), (2, 1), (2, 4), (4, 2), (8, 1)):
        assert step_inputs(dataset, ranks, batch, global_batch=8, steps=20) == expected


def test_batches_are_the_datasets_windows(dataset):
    inputs, labels = next(iter(loader(dataset, batch=3)))
    order = loader(dataset).order
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


def test_without_varlen_metadata_only_what_a_torchtitan_model_takes(dataset):
    inputs, _ = next(iter(loader(dataset, varlen_metadata=False)))
    assert set(inputs) == {"input", "positions"}


def test_a_finite_pass_holds_every_window_once_and_the_same_number_of_batches_on_every_rank(dataset):
    ranks, batch = 3, 2
    batches = [list(loader(dataset, rank, ranks, batch, split="val", infinite=False)) for rank in range(ranks)]
    assert len({len(one) for one in batches}) == 1
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


def test_it_goes_on_where_its_state_was_taken_on_another_number_of_ranks(dataset):
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


@pytest.mark.parametrize("key", ["fingerprint", "seed"])
def test_a_state_of_another_dataset_or_order_is_refused(dataset, key):
    one = loader(dataset)
    state = one.state_dict() | {key: "other"}
    with pytest.raises(InputError, match=f"the checkpoint was trained with {key} other"):
        one.load_state_dict(state)


def test_another_window_length_is_refused(dataset):
    config = PackedDataLoader.Config(dataset_path=str(dataset.folder))
    with pytest.raises(InputError, match=r"windows of 64 tokens, but training\.seq_len is 128"):
        config.build(dp_world_size=1, dp_rank=0, seq_len=128, local_batch_size=1, tokenizer=None)


def test_a_missing_dataset_is_refused(tmp_path: Path):
    for path, message in (("", "dataset_path is empty"), (str(tmp_path), "is not a packed dataset")):
        config = PackedDataLoader.Config(dataset_path=path)
        with pytest.raises(InputError, match=message):
            config.build(dp_world_size=1, dp_rank=0, seq_len=64, local_batch_size=1, tokenizer=None)
