"""Losses and gradients that are not finite: the run names the step and the windows, saves nothing, and ends."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils

from exact_titan.dataset import PackedDataset
from exact_titan.sampling.order import WindowOrder
from exact_titan.titan.nonfinite import NonFinite, NonFiniteDetector
from tests import warm_ranks
from tests.support import pack_texts
from tests.test_stopping import arguments

RUNNER = "tests.titan.poisoned_train"
TOKEN = 250


@pytest.fixture(scope="module")
def one_bad_document(tmp_path_factory) -> tuple[PackedDataset, int, int]:
    """A dataset with TOKEN in one document that fills one window, the number of this window, and its first step."""
    for number in range(40):
        texts = [" ".join(str(1 + (start + i) % 200) for i in range(64)) for start in range(40)]
        texts[number] = "11 12 13 " + " ".join([str(TOKEN)] * 61)
        dataset = pack_texts(tmp_path_factory.mktemp("bad"), texts, seq_len=64)
        (bad,) = (k for k in range(len(dataset)) if (dataset[k]["input"] == TOKEN).any())
        order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
        step = next(place for place in range(40) if order[place] == bad) // 4 + 1
        # After the first checkpoint, and in the first epoch.
        if 3 <= step <= 6:
            return dataset, bad, step
    raise AssertionError("none of 40 orders is fit for the test")


@pytest.fixture
def watch() -> Iterator[NonFiniteDetector]:
    """A detector for two microbatches per step, in a process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield NonFiniteDetector(torch.device("cpu"), 2)
    dist.destroy_process_group()


def take_step(watch: NonFiniteDetector, number: int, losses: tuple[float, float], gradient: float) -> None:
    """Make the detector calls of one training step, as the trainer and torchtitan do."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), gradient)
    with watch.step(number):
        for microbatch in (0, 1):
            watch.add_batch([10 * number + 2 * microbatch, 10 * number + 2 * microbatch + 1])
        for loss in losses:
            watch.add_loss(torch.tensor(loss))
        norm = dist_utils.clip_grad_norm_([parameter], 1.0)
        assert torch.equal(norm, torch.full((3,), gradient).norm()) or norm.isnan()


@pytest.mark.parametrize(("max_norm", "expected"), [(0, 3.0), (0.0, 3.0), (1.0, 1.0), (100.0, 3.0)])
def test_a_max_norm_of_0_does_not_clip(watch, max_norm, expected):
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.full((1,), 3.0)
    with watch.step(1):
        norm = dist_utils.clip_grad_norm_([parameter], max_norm)
    assert norm.item() == 3.0
    assert parameter.grad.item() == pytest.approx(expected, rel=1e-5)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("losses", "gradient", "what", "places"),
    [
        ((2.0, NAN), NAN, "the loss is nan", [32, 33]),
        ((-INF, 2.0), 1.0, "the loss is -inf", [30, 31]),
        ((NAN, INF), NAN, "the loss is nan", [30, 31, 32, 33]),
        ((2.0, 2.0), NAN, "the norm of the gradient is nan", [30, 31, 32, 33]),
        ((2.0, 2.0), INF, "the norm of the gradient is inf", [30, 31, 32, 33]),
    ],
)
def test_the_first_nonfinite_step_and_its_microbatches_are_named(watch, losses, gradient, what, places):
    take_step(watch, 1, (2.0, 3.0), 1.0)
    take_step(watch, 2, (2.0, 1e38), 1e18)
    assert watch.detected() is None
    watch.check()
    take_step(watch, 3, losses, gradient)
    take_step(watch, 4, (NAN, NAN), NAN)
    assert watch.detected() == f"{what} at step 3"
    with pytest.raises(NonFinite) as found:
        watch.check()
    assert (found.value.step, found.value.what, found.value.places) == (3, what, places)
    assert found.value.code == 65


def test_ranks_with_the_same_windows_name_every_window_once(watch, monkeypatch):
    """Under context and tensor parallelism the ranks of a group find the same value."""
    take_step(watch, 3, (2.0, NAN), NAN)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, own]))
    with pytest.raises(NonFinite) as found:
        watch.check()
    assert found.value.places == [32, 33]


def test_batches_outside_a_step_are_ignored(watch):
    for _ in range(5):
        watch.add_batch([1])
        watch.add_loss(torch.tensor(NAN))
    take_step(watch, 1, (2.0, 2.0), 1.0)
    watch.check()


def run(dataset: PackedDataset, folder: Path, how: str, nproc: int, *options: str) -> warm_ranks.Finished:
    # Steps of 4 windows. Only step 1 logs. Every second step saves a checkpoint.
    quiet = ["--training.global_batch_size", "4", "--metrics.log_freq", "1000", "--checkpoint.interval", "2"]
    argv = arguments(dataset, folder, *quiet, "--training.steps", "40", *options)
    return warm_ranks.run(nproc, RUNNER, how, TOKEN, *argv, cwd=folder)


def message(
    done: warm_ranks.Finished, folder: Path, dataset: PackedDataset, *, step: int, interval: int = 2
) -> tuple[list[str], int]:
    """Return the lines of the message on rank 0, and the step before the detection. Check everything else."""
    assert "the loss is nan" in done.stderr or "the norm of the gradient is nan" in done.stderr, done.stderr[-3000:]
    assert (folder / "out/exit_code").read_text() == "65\n"
    assert set(done.codes) == {65}
    assert "exact_titan/titan" not in done.stderr
    saved = (step - 1) // interval * interval
    assert max(int(one.name[5:]) for one in (folder / "out/checkpoint").iterdir()) == saved
    lines = [line for line in done.stderr.splitlines() if line.startswith(("exact_titan.train: stopped", "  "))]
    lines = lines[: 1 + next(i for i, line in enumerate(lines) if "exact-titan window" in line)]
    found = re.fullmatch(
        r"exact_titan\.train: stopped: the \D+ is nan at step (\d+), seen after step (\d+); "
        rf"the last checkpoint, of step {saved}, is from before",
        lines[0],
    )
    assert found, lines
    assert int(found[1]) == step
    return lines, int(found[2])


def test_a_loss_names_the_step_the_window_and_its_documents(one_bad_document, tmp_path):
    dataset, bad, step = one_bad_document
    done = run(dataset, tmp_path, "loss", 2)
    lines, seen = message(done, tmp_path, dataset, step=step)
    # On the CPU the copies arrive at once. The ranks agree on the next point for a stop.
    assert step <= seen <= step + 2
    assert lines[1:] == [
        f"  window {bad} of {dataset.folder}: 1 document, 64 tokens from '11 12 13{' 250' * 9}'",
        f"  all text of the window: exact-titan window {dataset.folder} {bad}",
    ]


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_gradient_names_the_step_and_all_of_its_windows(one_bad_document, tmp_path, nproc):
    dataset, _, step = one_bad_document
    done = run(dataset, tmp_path, "gradient", nproc)
    lines, _ = message(done, tmp_path, dataset, step=step)
    assert "the norm of the gradient is nan" in lines[0]
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=0)
    named = [int(re.match(r"  window (\d+) of", line)[1]) for line in lines[1:-1]]
    assert named == [order[place] for place in range(4 * (step - 1), 4 * step)]


@pytest.mark.slow
def test_a_nonfinite_loss_of_a_step_that_logs_is_found_in_the_step(one_bad_document, tmp_path):
    dataset, _, step = one_bad_document
    done = run(dataset, tmp_path, "loss", 2, "--metrics.log_freq", "1")
    assert message(done, tmp_path, dataset, step=step)[1] == step
