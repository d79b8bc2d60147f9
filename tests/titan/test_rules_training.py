"""The rules in real training: one and two ranks, accumulation, a resume on another number of ranks."""

import json
from collections.abc import Iterator

import pytest
import torch

from exact_titan.exposure import tail_mass
from exact_titan.sampling.order import WindowOrder
from tests.exposure.naive_rules import naive_weights
from tests.titan.test_training import argv, collectives, losses, reads, record

pytestmark = pytest.mark.slow

ALPHA = 2.0


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> dict:
    """The records of two launches: ``ranks 2`` and, later, ``ranks 1``, which resumes the run ``part``."""
    folder = tmp_path_factory.mktemp("rules")

    def spec(name: str, rule: str, *options: str, steps: int = 1, out: str = "", **more) -> dict:
        given = ["--loss.rule", rule, "--loss.alpha", str(ALPHA), *options]
        return {
            "name": name,
            "trainer": "exact",
            "argv": argv(dataset, folder / (out or name), *given, steps=steps),
            **more,
        }

    def random(name: str, out: str, *options: str, **more) -> dict:
        saved = ["--checkpoint.enable", "--checkpoint.interval", "2", "--checkpoint.async_mode", "disabled"]
        saved += ["--dataloader.seed", "5", "--loss.refresh_steps", "2", *options]
        return spec(name, "random", *saved, steps=4, out=out, slots=str(folder / "slots" / out), **more)

    def gradients(ranks: int, batch: int) -> Iterator[dict]:
        for rule in ("exact", "normalized_exact"):
            name = f"{rule} {ranks}"
            yield spec(name, rule, "--training.local_batch_size", str(batch), gradients=str(folder / f"{name}.pt"))

    quiet = ["--metrics.log_freq", "100"]
    two = [random("random", "whole"), random("part", "part", end_after=2), *gradients(2, 1)]
    two.append(spec("packed_position", "packed_position", steps=2))
    two += [
        spec(f"quiet {rule}", rule, *quiet, steps=3, count_operators=True) for rule in ("exact", "normalized_exact")
    ]
    one = [random("resumed", "part", "--training.local_batch_size", "2"), *gradients(1, 2)]
    return {"folder": folder, **record(2, folder / "two", *two), **record(1, folder / "one", *one)}


def weights_of_step(dataset, rule: str, step: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bucket of every target of a step of 4 windows, by a naive reading of the rule."""
    order = WindowOrder(len(dataset), dataset.manifest.fingerprint, seed=seed)
    places = range(4 * (step - 1), 4 * step)
    segments = [dataset.segment_lengths(k).tolist() for k in range(len(dataset))]
    bounds = dataset.buckets.lower_bounds.tolist()
    rows = naive_weights(
        rule,
        [segments[order[place]] for place in places],
        segments,
        bounds,
        threshold=16,
        alpha=ALPHA,
        seed=seed,
        places=list(places),
    )
    contexts = [dataset[order[place]]["positions"][: len(row)] + 1 for place, row in zip(places, rows, strict=True)]
    weights = torch.tensor([weight for row in rows for weight in row], dtype=torch.float64)
    return weights, dataset.buckets.index(torch.cat(contexts))


def test_random_draws_the_same_slots_on_two_ranks_and_after_a_resume_on_one_rank(runs):
    """The resumed run has another local batch. The refresh of step 2 changes the distribution after the resume."""
    whole, part = (
        {file.name: json.loads(file.read_text()) for file in (runs["folder"] / "slots" / name).iterdir()}
        for name in ("whole", "part")
    )
    assert set(whole) == {f"{place}.json" for place in range(16)}
    assert whole == part
    assert len({tuple(slots) for slots in whole.values()}) == 16
    # The sums of one rank have another order.
    for one, other in zip(losses(runs["part"]) + losses(runs["resumed"]), losses(runs["random"]), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert runs["resumed"]["weights"] == runs["random"]["weights"]


@pytest.mark.parametrize(("name", "seed"), [("random", 5), ("packed_position", 0)])
def test_the_log_has_the_weights_in_force(runs, dataset, name, seed):
    for step in (1, 2):
        weights, bucket = weights_of_step(dataset, name, step, seed)
        found = runs[name]["metrics"][str(step)]
        for b, label in enumerate(dataset.buckets.labels()):
            assert found["weights"][label] == pytest.approx(weights[bucket == b].mean().item(), rel=1e-6)
        mass = (weights[bucket >= 2].sum() / weights.sum()).item()
        assert found["tail_loss_mass"] == pytest.approx(mass, rel=1e-6)
        # The weight of exact in the tail would be another number.
        counts = torch.bincount(bucket, minlength=4)
        exact = torch.tensor([1, 1, 1 + ALPHA, 1 + ALPHA])
        wrong = tail_mass(counts, exact, dataset.buckets.lower_bounds, threshold=16)
        assert abs(mass - wrong) > 0.02


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_gradient_of_normalized_exact_is_that_of_exact_times_one_number(runs, dataset, ranks):
    """The step has two microbatches on every rank. The number is the targets of the whole step over their weights."""
    exact, normalized = (torch.load(runs["folder"] / f"{rule} {ranks}.pt") for rule in ("exact", "normalized_exact"))
    weights, _ = weights_of_step(dataset, "exact", 1)
    scale = len(weights) / weights.sum().item()
    assert scale < 0.8
    assert sum(gradient.abs().sum() for gradient in exact) > 0
    for one, other in zip(normalized, exact, strict=True):
        torch.testing.assert_close(one, scale * other, rtol=1e-4, atol=1e-8)
    loss, plain = (losses(runs[f"{rule} {ranks}"])[0][0] for rule in ("normalized_exact", "exact"))
    assert loss == pytest.approx(scale * plain, rel=1e-5)


def test_normalized_exact_adds_one_all_reduce_to_a_step(runs):
    exact, normalized = (runs[f"quiet {rule}"]["operators"]["2"] for rule in ("exact", "normalized_exact"))
    more = collectives(normalized) - collectives(exact)
    reductions = {name: count for name, count in more.items() if "reduce" in name}
    assert reductions == {"_c10d_functional.all_reduce.default": 1}
    # The other two entries of the one all-reduce have no communication of their own.
    assert {name.split(".")[1] for name in more} == {"all_reduce", "wait_tensor", "_wrap_tensor_autograd"}
    assert collectives(exact) - collectives(normalized) == {}
    assert reads(normalized) == reads(exact)
