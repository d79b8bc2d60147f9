"""Compiled steps train as eager steps, with one set of graphs for windows of any documents."""

import logging
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from exact_titan.dataset import PackedDataset
from exact_titan.titan import compiled_graphs
from exact_titan.titan.compiled_graphs import CompiledGraphs
from exact_titan.titan.run_config import CompileOptions
from tests.support import pack_lengths
from tests.titan.test_training import argv, losses, record

WINDOW = 512
STEPS = 20
COMPILED = ["--compile.enable", "--compile.backend", "aot_eager"]
"""The graphs of the other backend, without the code of a compiler."""

VALIDATED = ["--validator.enable", "--validator.freq", "10", "--validator.steps", "2"]
VALIDATED += ["--validator.dataloader.split", "train"]


def documents(rng: random.Random, count: int) -> list[int]:
    """Return the lengths of ``count`` documents that fill a window."""
    borders = [0, *sorted(rng.sample(range(1, WINDOW), count - 1)), WINDOW]
    return [end - start for start, end in pairwise(borders)]


@pytest.fixture(scope="module")
def many_documents(tmp_path_factory) -> PackedDataset:
    """Windows of 1 to 500 documents."""
    rng = random.Random(0)
    counts = [1, 500, 2, 300, 1, 50, 499, 3, 7, 120, 20, 1, 250, 400, 5, 33, 1, 80, 180, 11]
    lengths = [length for count in counts for length in documents(rng, count)]
    dataset = pack_lengths(tmp_path_factory.mktemp("many"), lengths, seq_len=WINDOW)
    found = [len(dataset[window]["cu_seqlens"]) - 1 for window in range(len(dataset))]
    assert (min(found), max(found), len(set(found))) == (1, 500, 17)
    return dataset


def train(ranks: int, dataset: PackedDataset, folder: Path, runs: dict[str, list[str]], steps: int) -> dict[str, Any]:
    options = ["--training.global_batch_size", "1", "--loss.num_chunks", "4", *VALIDATED]
    specs = [
        {"name": name, "trainer": "exact", "argv": argv(dataset, folder / name, *options, *extra, steps=steps)}
        for name, extra in runs.items()
    ]
    return record(ranks, folder, *specs)


@pytest.fixture(scope="module")
def one_process(many_documents, tmp_path_factory) -> dict[str, Any]:
    runs = {
        "eager": [],
        "selective": ["--compile.enable"],
        "full": [*COMPILED, "activation-checkpoint:full"],
        "none": [*COMPILED, "activation-checkpoint:none"],
    }
    return train(1, many_documents, tmp_path_factory.mktemp("compiled"), runs, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selective", "full", "none"])
def test_compiled_steps_train_as_eager_steps(name, one_process):
    assert len(losses(one_process[name])) == STEPS
    for ours, theirs in zip(losses(one_process[name]), losses(one_process["eager"]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selective", "full", "none"])
def test_no_graph_is_made_after_the_first_step_and_the_first_validation(name, one_process):
    made = one_process[name]["graphs"]
    first, validated = made[0], made[10]
    assert first == 2  # a block of the model, and the loss of a chunk
    assert made[:10] == [first] * 10
    assert validated == first + 2  # without gradients
    assert made[10:] == [validated] * 10
    assert one_process["eager"]["graphs"][-1] == 0


@pytest.mark.slow
def test_compiled_steps_of_other_layouts_train_as_one_process(many_documents, one_process, tmp_path):
    steps = 6
    runs = {
        "cp2 selective": [*COMPILED, "--parallelism.context_parallel_degree", "2"],
        "cp2 full": [*COMPILED, "--parallelism.context_parallel_degree", "2", "activation-checkpoint:full"],
        "tp2 selective": [*COMPILED, "--parallelism.tensor_parallel_degree", "2"],
        "dp2": [*COMPILED, "--training.global_batch_size", "2"],
        "dp2 eager": ["--training.global_batch_size", "2"],
    }
    results = train(2, many_documents, tmp_path, runs, steps)
    expected = losses(one_process["eager"])[:steps]
    for name in runs:
        reference = losses(results["dp2 eager"]) if name.startswith("dp2") else expected
        for ours, theirs in zip(losses(results[name]), reference, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5), name
        assert len(set(results[name]["graphs"])) == 1, name


def test_new_graphs_are_named_with_their_step(caplog, monkeypatch):
    made = iter([3, 3, 5, 6])
    monkeypatch.setattr(compiled_graphs, "graphs", lambda: next(made))
    monkeypatch.setattr(compiled_graphs.dist, "get_rank", lambda: 0)
    caplog.set_level(logging.INFO)
    counter = CompiledGraphs()
    for step in (1, 2):
        counter.report(f"step {step}")
    counter.report("the validation after step 2")
    assert [record.message for record in caplog.records] == [
        "torch.compile: 2 new graphs in step 2, 5 in all",
        "torch.compile: 1 new graph in the validation after step 2, 6 in all",
    ]


@pytest.mark.parametrize("available", [True, False])
def test_steps_are_compiled_by_default_with_cuda_only(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert CompileOptions().enable is available
