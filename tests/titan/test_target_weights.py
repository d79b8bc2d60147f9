"""The weights of the targets: their counts, a refresh, and the state in a checkpoint."""

import pytest
import torch
from torchtitan.components.loss import IGNORE_INDEX

from exact_titan.exposure import RULES, bucket_weights
from exact_titan.titan.loss import ExactLoss
from tests.titan.test_loss import exact, head_and_hidden, loss_and_gradients, windows


def test_weights_come_from_the_training_splits_counts(dataset):
    expected = bucket_weights(dataset.counts, dataset.buckets.lower_bounds, threshold=16)
    assert torch.equal(exact(dataset).weights_n, expected)
    assert exact(dataset).threshold == 16


def test_the_mean_weight_of_a_bucket_without_targets_is_the_expected_weight(dataset):
    none_n = torch.zeros(len(dataset.buckets), dtype=torch.float64)
    for name in RULES:
        loss = exact(dataset, rule=name, alpha=2.0)
        expected_n = loss.rule.mean_weights(loss.counts, loss.weights_n)
        assert torch.equal(loss.mean_weights(none_n, none_n), expected_n)
        assert (name == "standard") == bool((expected_n == 1).all())


def test_a_refresh_is_applied_before_the_next_step(dataset):
    _, labels, positions = windows(dataset, 0, 1)
    head, hidden = head_and_hidden(2)
    loss = exact(dataset, refresh_steps=2)
    fixed = loss.weights_n.clone()
    for step in (1, 2, 3):
        loss.start_step()
        if step < 3:
            assert torch.equal(loss.weights_n, fixed)
        loss_and_gradients(loss, hidden, head, labels, torch.tensor(1), positions=positions)
        loss.end_step(step)
    bucket = loss.buckets.index(positions + 1)[labels != IGNORE_INDEX]
    # The dataset has fewer windows than the prior may have.
    counts = dataset.counts + 2 * torch.bincount(bucket, minlength=len(loss.buckets))
    assert torch.equal(loss.weights_n, bucket_weights(counts, loss.buckets.lower_bounds, threshold=16))
    assert not torch.equal(loss.weights_n, fixed)


@pytest.mark.parametrize(
    ("rule", "saved_after"),
    [("exact", 1), ("exact", 2), ("exact", 3), *((rule, 3) for rule in RULES if rule != "exact")],
)
def test_a_refresh_survives_a_checkpoint_at_any_step(dataset, rule, saved_after):
    head, hidden = head_and_hidden(1)

    def run(loss: ExactLoss, steps: range) -> list[torch.Tensor]:
        losses = []
        for step in steps:
            _, labels, positions = windows(dataset, step)
            loss.start_step()
            loss.places_B, loss.divisor = torch.tensor([step]), torch.tensor(50.0)
            losses.append(loss_and_gradients(loss, hidden, head, labels, torch.tensor(1), positions=positions)[0])
            loss.end_step(step)
        return losses

    unbroken, first, second = (exact(dataset, rule=rule, refresh_steps=2) for _ in range(3))
    for loss in (unbroken, first, second):
        loss.prior_n *= 0.3719  # the prior of a dataset with more than 1,000 windows
    expected = run(unbroken, range(1, 6))
    run(first, range(1, saved_after + 1))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.counts.context_n, first.counts.context_n)
    assert run(second, range(saved_after + 1, 6)) == expected[saved_after:]
    assert torch.equal(second.weights_n, unbroken.weights_n)
    assert torch.equal(second.counts.context_n, unbroken.counts.context_n)
    assert torch.equal(second.counter.counts, unbroken.counter.counts)
    assert torch.equal(second.take_weight_sums(), unbroken.take_weight_sums())
    changed = not torch.equal(unbroken.weights_n, exact(dataset, rule=rule).weights_n)
    assert changed == (rule not in ("standard", "uniform"))


def test_the_state_of_a_checkpoint_from_before_the_sums_of_the_weights_is_loaded(dataset):
    head, hidden = head_and_hidden(1)
    loss, again = exact(dataset), exact(dataset)
    _, labels, positions = windows(dataset, 0)
    loss_and_gradients(loss, hidden, head, labels, torch.tensor(1), positions=positions)
    state = loss.state_dict()
    again.load_state_dict(state | {"weights": state["weights"][0], "sums": state["sums"][:2]})
    torch.testing.assert_close(again.take_weight_sums(), loss.take_weight_sums())
