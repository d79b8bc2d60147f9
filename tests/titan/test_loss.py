import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper

from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.exposure import bucket_weights
from exact_titan.titan.cross_entropy import BucketSums, weighted_cross_entropy
from exact_titan.titan.loss import ExactLoss


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


def naive_loss(dataset: PackedDataset, logits: torch.Tensor, labels: torch.Tensor, starts_of_row) -> float:
    """Return the loss by equations 1 to 6, one by one, in plain Python and float64, from the start of each document."""
    counts = dataset.counts.tolist()
    bounds = dataset.buckets.lower_bounds.tolist()
    threshold, alpha, gamma, eps = dataset.window // 4, 0.15, 0.5, 1e-6
    tail = [b for b, bound in enumerate(bounds) if bound >= threshold]
    total = sum(counts[b] for b in tail)
    share = {b: counts[b] / total for b in tail}
    inverse = {b: (share[b] + eps) ** -gamma for b in tail}
    mean = sum(share[b] * inverse[b] for b in tail)
    weight = {b: 1 + alpha * inverse[b] / mean for b in tail}
    log_probs = logits.double().log_softmax(-1)
    loss = targets = 0.0
    for row in range(labels.shape[0]):
        start = 0
        for i in range(labels.shape[1]):
            if i in starts_of_row[row]:
                start = i
            target = labels[row, i].item()
            if target == IGNORE_INDEX:
                continue
            # The label of input i is token i + 1 of the window. Its context is the inputs from the start to i.
            context = (i + 1) - start
            bucket = max(b for b, bound in enumerate(bounds) if bound <= context)
            loss += weight.get(bucket, 1.0) * -log_probs[row, i, target].item()
            targets += 1
    return loss / targets


def test_loss_equals_a_naive_reading_of_the_equations_on_packed_windows(dataset):
    _, labels, positions = windows(dataset, 0, 5, len(dataset) - 1)
    head, hidden = head_and_hidden(3)
    starts = [set(dataset[k]["cu_seqlens"].tolist()) for k in (0, 5, len(dataset) - 1)]
    expected = naive_loss(dataset, head(hidden), labels, starts)
    divisor = (labels != IGNORE_INDEX).sum()
    value, _, _ = loss_and_gradients(exact(dataset), hidden, head, labels, divisor, positions=positions)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_carry_the_weights(dataset):
    """A loss could have the right value and gradients without the weights. The model would then train without EXACT."""
    _, labels, positions = windows(dataset, 2, 3)
    head, hidden = head_and_hidden(2)
    loss = exact(dataset, alpha=3.0)
    divisor = (labels != IGNORE_INDEX).sum()
    _, hidden_grad, head_grad = loss_and_gradients(loss, hidden, head, labels, divisor, positions=positions)

    reference = hidden.double().clone().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    ce = F.cross_entropy((reference @ weight.T).flatten(0, 1), labels.flatten(), reduction="none")
    w = loss.weights_n[loss.buckets.index(positions + 1)].flatten()
    assert w.max() > 3
    ((ce * w).sum() / divisor).backward()
    torch.testing.assert_close(hidden_grad.double(), reference.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(head_grad.double(), weight.grad, rtol=1e-4, atol=1e-7)


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


def test_weights_come_from_the_training_splits_counts(dataset):
    expected = bucket_weights(dataset.counts, dataset.buckets.lower_bounds, threshold=16)
    assert torch.equal(exact(dataset).weights_n, expected)
    assert exact(dataset).threshold == 16


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


def test_measuring_counts_nothing_for_the_weights(dataset):
    _, labels, positions = windows(dataset, 0)
    head, hidden = head_and_hidden(1)
    loss = exact(dataset, refresh_steps=1)
    loss.set_lm_head(head)
    sums = BucketSums(len(loss.buckets), "cpu")
    with torch.no_grad():
        value, _ = loss.measure(hidden, labels, positions, sums)
    assert sums.sums_2n[0].sum().item() == pytest.approx(value.item(), rel=1e-6)
    assert loss.counter.counts.sum() == 0
    assert loss.sums.sums_2n.sum() == 0


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


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_refresh_survives_a_checkpoint_at_any_step(dataset, saved_after):
    head, hidden = head_and_hidden(1)

    def run(loss: ExactLoss, steps: range) -> None:
        for step in steps:
            _, labels, positions = windows(dataset, step)
            loss.start_step()
            loss_and_gradients(loss, hidden, head, labels, torch.tensor(1), positions=positions)
            loss.end_step(step)

    unbroken = exact(dataset, refresh_steps=2)
    run(unbroken, range(1, 6))
    first, second = exact(dataset, refresh_steps=2), exact(dataset, refresh_steps=2)
    run(first, range(1, saved_after + 1))
    second.load_state_dict(first.state_dict())
    run(second, range(saved_after + 1, 6))
    assert torch.equal(second.weights_n, unbroken.weights_n)
    assert torch.equal(second.counter.counts, unbroken.counter.counts)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha": -0.1}, "loss.alpha is -0.1"),
        ({"gamma": -1.0}, "loss.gamma is -1.0"),
        ({"eps": 0.0}, "loss.eps is 0.0"),
        ({"min_count": -1}, "loss.min_count is -1"),
        ({"threshold": 65}, "loss.threshold is 65: with a window of 64"),
        ({"threshold": 33}, "loss.threshold is 33"),
        ({"threshold": 0}, "loss.threshold is 0"),
        ({"refresh_steps": -1}, "loss.refresh_steps is -1"),
    ],
)
def test_bad_options_are_refused_by_name(dataset, options, name):
    with pytest.raises(InputError, match=f"^{name}"):
        exact(dataset, **options)


def test_a_loss_without_a_dataset_is_refused():
    with pytest.raises(InputError, match=r"^loss\.dataset_path is empty"):
        ExactLoss.Config().build()
