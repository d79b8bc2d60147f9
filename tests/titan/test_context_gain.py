"""The context gain of models whose loss is known as a function of the visible context, in one process."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.titan import trainer  # noqa: F401  torchtitan runs on the CPU then
from exact_titan.titan.context_gain import Cells, check_pieces
from exact_titan.titan.ema import WeightAverage
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import Validated
from exact_titan.titan.stop import Stopped
from exact_titan.titan.validate import ExposureValidator
from tests.checkpoints import load_decoder, transformers_model
from tests.support import VOCAB, pack_lengths, pack_texts

Validator = Callable[[PackedDataset, nn.Module, list[int], list[Validated]], ExposureValidator]
Validate = Callable[[PackedDataset, nn.Module, list[int]], Validated]


@pytest.fixture
def validator(tmp_path) -> Iterator[Validator]:
    """A function that makes a validator of all windows of a dataset. The group has one rank, a batch 2 windows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def make(dataset: PackedDataset, model: nn.Module, pieces: list[int], found: list[Validated]) -> ExposureValidator:
        metrics = SimpleNamespace(
            ntokens_since_last_log=0,
            run=tmp_path,
            log_validation=lambda **_: None,
            log_validated=lambda step, validated: found.append(validated),
            add_figure=lambda *_: None,
        )
        loss = ExactLoss.Config(dataset_path=str(dataset.folder), num_chunks=4).build()
        loss.set_lm_head(model.lm_head)
        loader = PackedDataLoader.Config(dataset_path=str(dataset.folder), split="train", infinite=False)
        validator = ExposureValidator.Config(dataloader=loader, keep_targets=0, context_gain=pieces).build(
            parallelism=SimpleNamespace(spmd_backend="partial_dtensor"),
            dp_world_size=1,
            dp_rank=0,
            tokenizer=None,
            parallel_dims=SimpleNamespace(
                pp_enabled=False,
                cp_enabled=False,
                dp_enabled=False,
                dp_cp_enabled=False,
                cp=1,
                tp=1,
                get_optional_mesh=lambda axis: None,
            ),
            loss_fn=loss,
            validation_context=torch.no_grad,
            metrics_processor=metrics,
            seq_len=dataset.window,
            local_batch_size=2,
        )
        validator.stop, validator.on_validated = SimpleNamespace(check=lambda: None), lambda step: None
        return validator

    yield make
    dist.destroy_process_group()


@pytest.fixture
def validate(validator) -> Validate:
    """A function that validates a model, and returns the result."""

    def run(dataset: PackedDataset, model: nn.Module, pieces: list[int]) -> Validated:
        found: list[Validated] = []
        validator(dataset, model, pieces, found).validate([model], step=1)
        return found[0]

    return run


class Copying(nn.Module):
    """Knows every token that was 20 tokens ago in the visible context. All other targets cost ``log(VOCAB)``."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(VOCAB, VOCAB, bias=False)
        self.lm_head.weight = nn.Parameter(torch.eye(VOCAB))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # The target of input i is token i + 1.
        copied = F.one_hot(tokens.roll(19, dims=1), VOCAB).float()
        return torch.where(positions[..., None] >= 19, 200 * copied, 0.0)


def test_a_model_that_copies_has_the_hand_made_gain(validate, tmp_path):
    """Two full windows of 64 tokens with period 20, and a short third window. The tail starts at context 16.

    Targets with context 20 or more cost 0. Within pieces of K, the targets with context 20 or more in their piece cost
    0. The last target of the document is alone in its window.
    """
    dataset = pack_texts(tmp_path, [" ".join(str(1 + word % 20) for word in range(129))], seq_len=64)
    found = validate(dataset, Copying(), [8, 20, 32, 63])
    log_v = math.log(VOCAB)
    # Contexts from max(16, K) to 64 are 65 - max(16, K) targets a window.
    expected = {
        "8": (49, 45),  # no target of a piece has context 20
        "20": (45, 42),  # but for the contexts 20, 40 and 60, the last of a piece
        "32": (33, 19),  # the contexts 33 to 51 are the contexts 1 to 19 of the second piece
        "63": (2, 1),  # context 64 is context 1 of the second piece
    }
    assert {piece: gain.targets for piece, gain in found.context_gain.items()} == {
        piece: 2 * targets for piece, (targets, _) in expected.items()
    }
    for piece, (targets, lost) in expected.items():
        assert found.context_gain[piece].gain == pytest.approx(log_v * lost / targets, rel=1e-6)
    # The pieces do not touch the losses of the validation: 19 targets a window below context 20, and the last target.
    assert found.sums_2n[0].sum().item() == pytest.approx((2 * 19 + 1) * log_v, rel=1e-6)
    assert torch.equal(found.sums_2n[1].long(), dataset.counts)


@pytest.fixture
def documents(tmp_path) -> PackedDataset:
    """Documents shorter and longer than a window of 64 tokens."""
    return pack_lengths(tmp_path / "documents", [150, 30, 5, 64, 90, 20, 1, 70], seq_len=64)


def test_a_model_that_ignores_its_context_gains_nothing(validate, documents, tmp_path):
    transformers_model("llama").save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    model._skip_lm_head = True
    for layer in model.layers.values():
        nn.init.zeros_(layer.attention.wo.weight)
    found = validate(documents, model, [8, 24]).context_gain
    assert all(one.targets > 100 for one in found.values())
    assert [one.gain for one in found.values()] == [0.0, 0.0]


@pytest.mark.parametrize(("batches", "records"), [(1, 0), (5, 0), (9, 1), (13, 1), (16, 2)])
def test_a_stop_in_any_pass_ends_the_validation_with_the_last_weights(validator, documents, batches, records):
    """Each of the two sets of weights has 2 passes of 4 batches. The stop comes after ``batches`` batches."""
    model, found, passed, validated = Copying(), [], [], []
    average = WeightAverage(0.5, [model], before_exchange=lambda: None)
    average.start()
    with torch.no_grad():
        model.lm_head.weight *= 2
    before = model.lm_head.weight.clone()

    def check() -> None:
        if len(passed) == batches:
            raise Stopped("a signal")
        passed.append(None)

    made = validator(documents, model, [8], found)
    made.average, made.stop.check, made.on_validated = average, check, validated.append
    with pytest.raises(Stopped) if batches < 16 else contextlib.nullcontext():
        made.validate([model], step=7)
    assert [one.weights for one in found] == ["last", "ema"][:records]
    assert torch.equal(model.lm_head.weight, before)
    assert validated == ([7] if batches == 16 else [])


@torch.no_grad()
def naive_gain(reference: nn.Module, dataset: PackedDataset, piece: int) -> tuple[float, int]:
    """Return the gain and the targets from one forward pass of transformers per piece of every document."""
    differences: list[torch.Tensor] = []
    for window in (dataset[k] for k in range(len(dataset))):
        borders = window["cu_seqlens"].tolist()
        for start, end in itertools.pairwise(borders):
            tokens, labels = window["input"][start:end], window["labels"][start:end]
            if (labels == -100).any():
                continue  # padding
            whole = F.cross_entropy(reference(tokens[None]).logits[0], labels, reduction="none")
            parts = zip(tokens.split(piece), labels.split(piece), strict=True)
            alone = [F.cross_entropy(reference(one[None]).logits[0], label, reduction="none") for one, label in parts]
            differences.append((torch.cat(alone) - whole)[max(16, piece) - 1 :])
    gains = torch.cat(differences).double()
    return gains.mean().item(), len(gains)


def test_the_gain_equals_a_forward_pass_for_every_piece_alone(validate, documents, tmp_path):
    reference = transformers_model("llama with scaled RoPE")
    reference.save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    model._skip_lm_head = True
    found = validate(documents, model, [8, 24]).context_gain
    for piece in (8, 24):
        gain, targets = naive_gain(reference, documents, piece)
        assert abs(gain) > 1e-3
        assert found[str(piece)].targets == targets
        assert found[str(piece)].gain == pytest.approx(gain, abs=1e-5)


def test_cells_are_the_buckets_divided_at_every_k():
    buckets = Buckets(64)
    context = torch.arange(1, 65)
    for pieces in ([], [16], [20, 3, 63], [1]):
        cells = Cells(buckets, pieces)
        index = cells.index(context)
        assert index.max() + 1 == len(cells) == len({*buckets.lower_bounds.tolist(), *pieces})
        sums = torch.stack([torch.bincount(index, context, len(cells)), torch.bincount(index, minlength=len(cells))])
        by_bucket = cells.by_bucket(sums.double())
        assert by_bucket[0].tolist() == torch.bincount(buckets.index(context), context).tolist()
        assert by_bucket[1].tolist() == torch.bincount(buckets.index(context)).tolist()


def test_without_targets_there_is_no_gain_and_other_targets_are_refused():
    cells = Cells(Buckets(64), [40])
    whole = torch.zeros(2, len(cells), dtype=torch.float64)
    whole[1, 0] = 3
    found = cells.gain(whole, whole, piece=40, threshold=16, seconds=1.0)
    assert (found.gain, found.targets) == (None, 0)
    with pytest.raises(InputError, match="needs the same windows in every pass"):
        cells.gain(whole, whole + 1, piece=40, threshold=16, seconds=1.0)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([0], r"validator\.context_gain has 0: .* a piece must have 1 to 63 tokens"),
        ([8, 64], r"validator\.context_gain has 64: with a window of 64 tokens"),
        ([8, 16, 8], r"validator\.context_gain has 8 twice"),
    ],
)
def test_lengths_that_give_no_gain_are_refused(pieces, message):
    with pytest.raises(InputError, match=message):
        check_pieces(pieces, window=64)
