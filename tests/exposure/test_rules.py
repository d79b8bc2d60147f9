from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_titan.exposure import RULES, Buckets, RuleName, TargetCounts, Targets, find_rule
from tests.exposure.naive_rules import contexts, naive_weights
from tests.support import ROOT

WINDOW = 64
BUCKETS = Buckets(WINDOW)
BOUNDS = BUCKETS.lower_bounds.tolist()
OPTIONS = {"threshold": 16, "alpha": 0.5, "gamma": 0.5}
WEIGHTED = [name for name in RULES if name != "standard"]


@st.composite
def random_windows(draw: st.DrawFn) -> list[list[int]]:
    """Windows of segments. Some windows are not full."""
    windows = []
    for _ in range(draw(st.integers(1, 5))):
        left, window = WINDOW, []
        for length in draw(st.lists(st.integers(1, WINDOW), min_size=1, max_size=8)):
            if length <= left:
                window.append(length)
                left -= length
        windows.append(window or [draw(st.integers(1, WINDOW))])
    return windows


def counts_of(windows: list[list[int]]) -> TargetCounts:
    length = torch.tensor([length for window in windows for length in window])
    offset = torch.tensor([sum(window[:k]) for window in windows for k in range(len(window))])
    return TargetCounts(BUCKETS.count_segments(length), BUCKETS.count_joint(length, offset))


def weights_of(name: str, windows: list[list[int]], counts: TargetCounts, **keys) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of all targets of some windows ``[T]``, and the buckets of their effective contexts ``[T]``."""
    padded = [contexts(window) + [1] * (WINDOW - sum(window)) for window in windows]
    valid = torch.tensor([[i < sum(window) for i in range(WINDOW)] for window in windows])
    context_BL = BUCKETS.index(torch.tensor(padded))
    rule = RULES[name]
    weights_n = rule.weights(counts, BUCKETS.lower_bounds, **OPTIONS)
    slot_BL = rule.slot(Targets(context_BL, BUCKETS, counts, **keys))
    assert (weights_n.dtype, slot_BL.dtype, slot_BL.shape) == (torch.float32, torch.int64, context_BL.shape)
    return weights_n[slot_BL][valid], context_BL[valid]


@pytest.mark.parametrize("name", RULES)
@given(windows=random_windows(), seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_every_target_has_the_weight_of_a_naive_reading_of_the_rule(name, windows, seed, first):
    places = [first + 3 * k for k in range(len(windows))]
    found, _ = weights_of(name, windows, counts_of(windows), places_B=torch.tensor(places), seed=seed)
    expected = naive_weights(name, windows, windows, BOUNDS, **OPTIONS, seed=seed, places=places)
    assert found.tolist() == pytest.approx([weight for window in expected for weight in window], rel=1e-6)


@pytest.mark.parametrize("name", WEIGHTED)
@given(windows=random_windows())
@settings(max_examples=25, deadline=None)
def test_all_rules_spend_the_extra_mass_of_exact(name, windows):
    """Tolerance: float32 (1e-6 relative) for the rules without a draw, five standard deviations for ``random``."""
    counts = counts_of(windows)
    share = counts.context_n[BUCKETS.lower_bounds >= OPTIONS["threshold"]].sum() / counts.context_n.sum()
    expected = OPTIONS["alpha"] * share.item()
    tolerance = 1e-6 * (1 + expected)
    if name == "random":
        # The windows of the dataset stand at many places of the run.
        places = torch.arange(40 * len(windows))
        found, _ = weights_of(name, windows * 40, counts, places_B=places)
        tolerance += 5 * (found.double().var(correction=0) / len(found)).sqrt().item()
    else:
        found, _ = weights_of(name, windows, counts)
    assert (found.double() - 1).mean().item() == pytest.approx(expected, abs=tolerance)
    # The weights without their targets: the expectation by bucket, as the tables and the logs take it.
    rule = RULES[name]
    mean_n = rule.mean_weights(counts, rule.weights(counts, BUCKETS.lower_bounds, **OPTIONS))
    extra = ((mean_n - 1) * counts.context_n).sum() / counts.context_n.sum()
    assert extra.item() == pytest.approx(expected, abs=1e-6 * (1 + expected))


@pytest.mark.parametrize("name", RULES)
def test_mean_weights_are_the_means_of_the_targets_of_each_bucket(name):
    windows = [[10, 30, 20], [64], [3, 40], [5, 5, 5, 5, 44]]
    counts = counts_of(windows)
    repeats = 500 if name == "random" else 1
    weights, context = weights_of(name, windows * repeats, counts, places_B=torch.arange(4 * repeats), seed=5)
    rule = RULES[name]
    expected = rule.mean_weights(counts, rule.weights(counts, BUCKETS.lower_bounds, **OPTIONS))
    for bucket in range(len(BUCKETS)):
        inside = weights[context == bucket].double()
        deviation = (inside.var(correction=0) / len(inside)).sqrt().item() if name == "random" else 0
        assert inside.mean().item() == pytest.approx(expected[bucket].item(), abs=1e-6 + 5 * deviation)


def test_a_draw_takes_buckets_by_their_share_and_never_an_empty_bucket():
    counts = TargetCounts(torch.tensor([0, 3, 0, 1]))
    targets = Targets(torch.zeros(200, WINDOW, dtype=torch.int64), BUCKETS, counts, torch.arange(200), seed=1)
    drawn = torch.bincount(RULES["random"].slot(targets).flatten(), minlength=4)
    assert drawn[[0, 2]].tolist() == [0, 0]
    total = 200 * WINDOW
    assert drawn[1].item() == pytest.approx(0.75 * total, abs=5 * (total * 0.75 * 0.25) ** 0.5)


def test_a_draw_does_not_depend_on_the_other_windows_of_the_batch():
    counts = TargetCounts(torch.tensor([5, 4, 3, 2]))

    def slots(*places: int, seed: int = 0) -> torch.Tensor:
        context_BL = torch.zeros(len(places), WINDOW, dtype=torch.int64)
        return RULES["random"].slot(Targets(context_BL, BUCKETS, counts, torch.tensor(places), seed))

    together = slots(8, 9, 10, 11)
    assert torch.equal(together, torch.cat([slots(8), slots(9, 10), slots(11)]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, slots(8, 9, 10, 11, seed=1))


def test_rules_that_lack_their_inputs_are_refused():
    counts = TargetCounts(torch.tensor([5, 4, 3, 2]))
    with pytest.raises(ValueError, match="random needs the places"):
        RULES["random"].slot(Targets(torch.zeros(1, WINDOW, dtype=torch.int64), BUCKETS, counts))
    with pytest.raises(ValueError, match="packed_position needs the counts of the packed positions"):
        RULES["packed_position"].weights(counts, BUCKETS.lower_bounds, threshold=16)


@pytest.mark.parametrize("name", RULES)
def test_a_dataset_without_a_tail_has_finite_weights(name):
    """Every document is shorter than the threshold, and no window is longer either."""
    counts = counts_of([[3, 4], [7]])
    rule = RULES[name]
    weights_n = rule.weights(counts, BUCKETS.lower_bounds, **OPTIONS)
    assert weights_n.isfinite().all()
    assert rule.mean_weights(counts, weights_n)[0].item() == 1


def test_the_names_of_the_rules():
    assert list(RULES) == ["standard", "exact", "normalized_exact", "uniform", "packed_position", "random"]
    assert get_args(RuleName) == tuple(RULES)
    assert find_rule("exact") is RULES["exact"]
    with pytest.raises(ValueError, match="rule is 'best': choose one of standard, exact, "):
        find_rule("best")


def test_the_table_of_the_documentation_has_every_rule():
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    table = text.partition("## Rules")[2].partition("\n## ")[0]
    rows = [
        line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `") and "loss." not in line
    ]
    assert rows == list(RULES)
