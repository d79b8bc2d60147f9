"""A run that SIGKILL has ended resumes on another layout of the ranks: data, context and tensor parallelism."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from exact_titan.dataset import PackedDataset
from exact_titan.runs.export import export
from exact_titan.runs.metrics_log import read_records
from tests import warm_ranks
from tests.support import pack_lengths
from tests.titan.layouts import HEADS, LAYOUTS, ONE, WINDOW, WINDOWS_PER_STEP, Layout, arguments, train
from tests.titan.test_ema import stored
from tests.titan.test_training import RUNNER

pytestmark = pytest.mark.slow

NAMES = ["one", "dp4", "cp2-tp2", "dp2", "cp4", "dp2-tp2", "cp2", "tp4", "dp2-cp2", "tp3", "replicas2-dp2", "tp2"]
NAMES += ["dp3", "cp3", "one"]
PAIRS = list(pairwise(NAMES))
CHAIN = [{**LAYOUTS, "one": ONE}[name] for name in NAMES]
"""The layouts of one run. SIGKILL ends the run on every layout but the last, and the next layout resumes it."""

STEPS = len(CHAIN) + 1


def options(dataset: PackedDataset, output: Path, layout: Layout) -> list[str]:
    """Return the arguments of a run that saves every step."""
    saved = ["--checkpoint.enable", "--checkpoint.interval", "1", "--checkpoint.async_mode", "disabled"]
    saved += ["--checkpoint.keep_latest_k", "0", "--loss.refresh_steps", "3", "--loss.num_chunks", "1"]
    # One microbatch: test_layout.py tests the gradient accumulation.
    windows = WINDOWS_PER_STEP // (layout.replicas * layout.shards)
    saved += ["--ema.decay", "0.5", "--optimizer.lr", "1e-3", *layout.options]
    saved += ["--training.local_batch_size", str(windows)]
    return arguments(dataset, output, *saved, sizes=HEADS, steps=STEPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def dataset(folder) -> PackedDataset:
    rng = np.random.default_rng(2)
    return pack_lengths(folder, (rng.lognormal(3, 1, 60) + 1).astype(int).tolist(), seq_len=WINDOW)


@pytest.fixture(scope="module")
def unbroken(dataset, folder) -> dict:
    """One process without an interruption."""
    return train(1, folder / "1", {"run": options(dataset, folder / "unbroken", ONE)})["run"]


@pytest.fixture(scope="module")
def moved(dataset, folder) -> dict:
    """The run on the layouts of CHAIN. On layout k it trains steps k + 1 and k + 2. Step k + 2 is killed before it
    is saved. The last layout trains to the end."""
    for k, layout in enumerate(CHAIN[:-1]):
        own = folder / f"{k}-{layout.name}"
        own.mkdir()
        spec = {"name": "run", "trainer": "exact", "argv": options(dataset, folder / "moved", layout)}
        (own / "spec.json").write_text(json.dumps([{**spec, "kill_after": k + 2}]))
        killed = warm_ranks.run(layout.ranks, RUNNER, own / "spec.json", own / "none.json", cwd=own)
        assert -signal.SIGKILL in killed.codes, killed.stdout[-3000:] + killed.stderr[-3000:]
        assert max(int(one.name[5:]) for one in (folder / "moved/checkpoint").iterdir()) == k + 1
    return train(1, folder / "last", {"run": options(dataset, folder / "moved", CHAIN[-1])})["run"]


def test_every_layout_is_left_and_resumed():
    assert {source for source, _ in PAIRS} == {target for _, target in PAIRS}
    assert {"one", *LAYOUTS} - {source for source, _ in PAIRS} == {"replicas2", "replicas2-cp2", "replicas2-tp2"}


@pytest.mark.parametrize("step", [pytest.param(k + 2, id=" to ".join(pair)) for k, pair in enumerate(PAIRS)])
def test_a_killed_run_resumes_on_another_layout(step, folder, unbroken, moved):
    """The first step after the change of the layout is the step of the unbroken run."""
    (found,), (expected,) = (
        [record for record in read_records(folder / run, "train") if record["step"] == step]
        for run in ("moved", "unbroken")
    )
    for value in ("loss", "grad_norm", "cross_entropy"):
        assert found[value] == pytest.approx(expected[value], rel=2e-5)
    for value in ("weights", "tokens_seen", "learning_rates"):
        assert found[value] == expected[value]
    for label, bucket in expected["buckets"].items():
        assert found["buckets"][label]["targets"] == bucket["targets"]


def test_the_loader_and_the_counters_are_those_of_the_unbroken_run(unbroken, moved):
    for value in ("counts", "windows"):
        assert moved[value] == unbroken[value]
    assert sum(unbroken["counts"]) > 0
    assert list(moved["metrics"]) == [str(step) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("step", [pytest.param(k + 1, id=name) for k, name in enumerate(NAMES)])
def test_the_export_of_a_layout_is_that_of_one_process(step, folder, unbroken, moved, tmp_path):
    found, expected = (
        load_file(export(folder / run, tmp_path / run, step=step, dtype="float32")[0]) for run in ("moved", "unbroken")
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs()
        # A step of AdamW has the size of the learning rate, 1e-3, also for a gradient that is only rounding.
        assert difference.max() < 1e-3
        assert difference.mean() < 1e-6


def test_the_moving_average_is_that_of_the_unbroken_run(folder, unbroken, moved):
    (_, found), (weights, expected) = (stored(folder / run, STEPS) for run in ("moved", "unbroken"))
    assert found.keys() == expected.keys() != set()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().mean() < 1e-6
    assert any((weights[name] - tensor).abs().mean() > 1e-5 for name, tensor in expected.items())
