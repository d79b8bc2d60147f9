"""Every layout of the ranks trains as one process does: data, context and tensor parallelism."""

import json
from pathlib import Path
from typing import Any

import pytest

from exact_titan.runs.metrics_log import read_records
from tests.titan.test_training import argv, losses, record

STEPS = 6
OPTIONS = [
    *["--loss.refresh_steps", "2", "--validator.enable", "--validator.freq", "3", "--validator.context_gain", "8,24"],
    *["--loss.num_chunks", "4"],
]
CHECKPOINTING = {"selective": "activation-checkpoint:selective", "full": "activation-checkpoint:full"}


def degrees(context: int = 1, tensor: int = 1, replicas: int = 1) -> list[str]:
    return [
        *["--parallelism.context_parallel_degree", str(context), "--parallelism.tensor_parallel_degree", str(tensor)],
        *["--parallelism.data_parallel_replicate_degree", str(replicas)],
    ]


def train(ranks: int, dataset, folder: Path, layouts: dict[str, list[str]]) -> dict[str, Any]:
    specs = [
        {
            "name": name,
            "trainer": "exact",
            "argv": argv(dataset, folder / name, *OPTIONS, *options, steps=STEPS),
        }
        for name, options in layouts.items()
    ]
    results = record(ranks, folder, *specs)
    return {name: results[name] | {"records": read_records(folder / name, "validation")} for name in layouts}


@pytest.fixture(scope="module")
def one_process(dataset, tmp_path_factory) -> dict[str, Any]:
    return train(1, dataset, tmp_path_factory.mktemp("one"), {"one": []})["one"]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("layouts")
    two = {"cp2": degrees(context=2), "tp2": degrees(tensor=2)}
    four = {
        "dp2-cp2": degrees(context=2),
        "dp2-tp2": degrees(tensor=2),
        "cp2-tp2": degrees(context=2, tensor=2),
        "cp4": degrees(context=4),
    }
    return train(2, dataset, folder / "2", two) | train(4, dataset, folder / "4", four)


@pytest.mark.parametrize("name", ["cp2", "tp2", "dp2-cp2", "dp2-tp2", "cp2-tp2", "cp4"])
def test_a_layout_trains_as_one_process(name, one_process, runs):
    for ours, theirs in zip(losses(runs[name]), losses(one_process), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    print(json.dumps(runs[name]["metrics"])[:1500])
    print(json.dumps(one_process["metrics"])[:1500])
