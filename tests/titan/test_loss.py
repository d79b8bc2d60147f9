import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper

from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.exposure import RULES, tail_mass
from exact_titan.titan.cross_entropy import BucketSums, weighted_cross_entropy
from exact_titan.titan.loss import ExactLoss
from tests.exposure.naive_rules import naive_weights


def windows(dataset: PackedDataset, *indices: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = [dataset[index] for index in indices]
    return tuple(torch.stack([row[key] for row in rows]) for key in ("input", "labels", "positions"))  # type: ignore


def head_and_hidden(n_rows: int, window: int = 64) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(16, 256, bias=False), torch.randn(n_rows, window, 16)


def loss_and_gradients(loss, hidden: torch.Tensor, head: nn.Linear, labels, divisor, **inputs):
    hidden = hidden.clone().requires_grad_()
    head.weight.grad = None
    loss.set_lm_head(head)
    value, metrics = loss(hidden, labels, divisor, **inputs)
    value.backward()
    assert metrics == {}
    return value.detach(), hidden.grad, head.weight.grad.clone()


def exact(dataset: PackedDataset, **options) -> ExactLoss:
    return ExactLoss.Config(dataset_path=str(dataset.folder), num_chunks=4, **options).build()


def segments(dataset: PackedDataset, k: int) -> list[int]:
    """Return the lengths of the document segments of a window, without padding."""
    return dataset.segment_lengths(k).tolist()


def naive_loss(
    rule: str, dataset: PackedDataset, indices: list[int], hidden: torch.Tensor, head: nn.Linear, **options
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return the loss and its gradients in float64, target by target, with the weights of a naive reading of a rule."""
    rows = [segments(dataset, k) for k in indices]
    weights = naive_weights(
        rule,
        rows,
        [segments(dataset, k) for k in range(len(dataset))],
        dataset.buckets.lower_bounds.tolist(),
        threshold=dataset.window // 4,
        **options,
    )
    hidden64 = hidden.double().clone().requires_grad_()
    head64 = head.weight.detach().double().requires_grad_()
    log_probs = (hidden64 @ head64.T).log_softmax(-1)
    terms, mass = [], 0.0
    for row, k in enumerate(indices):
        labels = dataset[k]["labels"].tolist()
        assert all(label == IGNORE_INDEX for label in labels[len(weights[row]) :])
        for i, weight in enumerate(weights[row]):
            terms.append(-weight * log_probs[row, i, labels[i]])
            mass += weight
    divisor = mass if rule == "normalized_exact" else len(terms)
    loss = torch.stack(terms).sum() / divisor
    loss.backward()
    assert hidden64.grad is not None
    assert head64.grad is not None
    return loss.item(), hidden64.grad, head64.grad


@pytest.mark.parametrize("rule", RULES)
def test_loss_and_gradients_equal_a_naive_reading_of_the_rule_on_packed_windows(dataset, rule):
    """A loss could have the right value and gradients without the weights. The model would then train without EXACT."""
    indices, places, seed = [0, 5, len(dataset) - 1], [40, 3, 2**33], 11
    _, labels, positions = windows(dataset, *indices)
    assert (labels == IGNORE_INDEX).any()
    head, hidden = head_and_hidden(3)
    options = {"alpha": 3.0, "gamma": 0.7}
    expected = naive_loss(rule, dataset, indices, hidden, head, seed=seed, places=places, **options)
    loss = exact(dataset, rule=rule, _seed=seed, **options)
    loss.places_B = torch.tensor(places)
    if loss.rule.weighted_divisor:
        batches = [({"positions": positions, "places": loss.places_B}, labels)]
        loss.divisor = loss.weight_sum(batches).to(torch.float32)
    divisor = (labels != IGNORE_INDEX).sum()
    value, hidden_grad, head_grad = loss_and_gradients(loss, hidden, head, labels, divisor, positions=positions)
    assert value.item() == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(hidden_grad.double(), expected[1], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(head_grad.double(), expected[2], rtol=1e-4, atol=1e-7)
    plain = naive_loss("standard", dataset, indices, hidden, head)[0]
    assert (rule == "standard") == (abs(expected[0] - plain) < 1e-4 * plain)

    # The log: the weights of these targets.
    valid = labels != IGNORE_INDEX
    bucket = loss.buckets.index(positions + 1)[valid]
    weights = torch.tensor(
        [
            weight
            for row in naive_weights(
                rule,
                [segments(dataset, k) for k in indices],
                [segments(dataset, k) for k in range(len(dataset))],
                dataset.buckets.lower_bounds.tolist(),
                threshold=16,
                seed=seed,
                places=places,
                **options,
            )
            for weight in row
        ],
        dtype=torch.float64,
    )
    sums_2n = loss.sums.take()
    means = loss.mean_weights(sums_2n[1], loss.take_weight_sums())
    for b in range(len(loss.buckets)):
        assert means[b].item() == pytest.approx(weights[bucket == b].mean().item(), rel=1e-6)
    found = tail_mass(sums_2n[1], means, loss.buckets.lower_bounds, threshold=16)
    assert found == pytest.approx((weights[bucket >= 2].sum() / weights.sum()).item(), rel=1e-6)
    assert loss.weight_sums_n.sum() == 0


@pytest.mark.parametrize("rule", ["random", "normalized_exact"])
def test_a_rule_that_needs_the_own_trainer_is_refused_in_another_trainer(dataset, rule):
    _, labels, positions = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    with pytest.raises(InputError, match=f"^loss.rule is {rule}: this rule needs exact_titan's own trainer"):
        loss_and_gradients(exact(dataset, rule=rule), hidden, head, labels, torch.tensor(1), positions=positions)


@pytest.mark.parametrize("options", [{"rule": "standard"}, {"alpha": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_1_are_bit_equal_to_torchtitans_loss(dataset, options, dtype):
    _, labels, positions = windows(dataset, 1, 4, len(dataset) - 1)
    head, hidden = head_and_hidden(3)
    head, hidden = head.to(dtype), hidden.to(dtype)
    divisor = (labels != IGNORE_INDEX).sum()
    stock = loss_and_gradients(ChunkedLossWrapper.Config(num_chunks=4).build(), hidden, head, labels, divisor)
    ours = loss_and_gradients(exact(dataset, **options), hidden, head, labels, divisor, positions=positions)
    for one, other in zip(stock, ours, strict=True):
        assert torch.equal(one, other)


def test_a_weight_slightly_above_1_is_not_bit_equal(dataset):
    """The test above can fail: a weight of 1.0001 changes the bits."""
    logits, labels = torch.randn(1, 32, 256), torch.randint(256, (1, 32))
    one, _ = weighted_cross_entropy(logits, labels, torch.ones(1, 32))
    more, _ = weighted_cross_entropy(logits, labels, torch.full((1, 32), 1 + 1e-4))
    assert not torch.equal(one, more)


def test_the_divisor_is_the_number_of_targets_not_the_sum_of_the_weights(dataset):
    _, labels, positions = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    one, *_ = loss_and_gradients(exact(dataset), hidden, head, labels, torch.tensor(10), positions=positions)
    half, *_ = loss_and_gradients(exact(dataset), hidden, head, labels, torch.tensor(20), positions=positions)
    assert one.item() == pytest.approx(2 * half.item(), rel=1e-6)


def test_without_positions_and_gradients_the_loss_is_the_plain_cross_entropy(dataset):
    """torchtitan's own validator calls the loss in this way."""
    _, labels, _ = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    loss = exact(dataset, alpha=2.0)
    loss.set_lm_head(head)
    with torch.no_grad():
        value, _ = loss(hidden, labels)
        expected = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("rule", ["exact", "standard"])
def test_a_training_step_without_positions_is_refused(dataset, rule):
    """Pipeline parallelism in torchtitan's trainer. The loss would silently be the plain cross-entropy."""
    _, labels, _ = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    with pytest.raises(InputError, match=r"no positions.*parallelism\.pipeline_parallel_degree to 1"):
        loss_and_gradients(exact(dataset, rule=rule), hidden, head, labels, torch.tensor(1))


def test_windows_of_another_length_than_the_datasets_are_refused(dataset):
    _, labels, positions = windows(dataset, 0)
    head, hidden = head_and_hidden(1, 32)
    with pytest.raises(InputError, match=f"{dataset.folder}, packed in windows of 64 .* 32 tokens.*training.seq_len"):
        loss_and_gradients(exact(dataset), hidden, head, labels[:, :32], torch.tensor(1), positions=positions[:, :32])


def test_bucket_sums_are_the_plain_cross_entropy_of_each_bucket(dataset):
    _, labels, positions = windows(dataset, 0, 1, len(dataset) - 1)
    head, hidden = head_and_hidden(3)
    loss = exact(dataset, alpha=2.0)
    loss_and_gradients(loss, hidden, head, labels, torch.tensor(1), positions=positions)
    ce = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="none").detach()
    bucket = loss.buckets.index(positions + 1).flatten()
    sums = loss.sums.take()
    for b in range(len(loss.buckets)):
        inside = (bucket == b) & (labels.flatten() != IGNORE_INDEX)
        assert sums[1, b].item() == inside.sum().item()
        assert sums[0, b].item() == pytest.approx(ce[inside].sum().item(), rel=1e-5)
    assert loss.sums.take().sum() == 0


@pytest.mark.parametrize("rule", RULES)
def test_measuring_is_plain_and_counts_nothing_for_the_weights(dataset, rule):
    _, labels, positions = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    loss = exact(dataset, rule=rule, refresh_steps=1)
    loss.set_lm_head(head)
    sums = BucketSums(len(loss.buckets), "cpu")
    with torch.no_grad():
        value, _ = loss.measure(hidden, labels, loss.buckets.index(positions + 1), sums)
    assert sums.sums_2n[0].sum().item() == pytest.approx(value.item(), rel=1e-6)
    plain = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    assert loss.counter.counts.sum() == 0
    assert loss.sums.sums_2n.sum() == 0
    assert loss.weight_sums_n.sum() == 0
