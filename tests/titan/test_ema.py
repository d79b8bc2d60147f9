"""The moving average of the weights: its values, its checkpoints, and its validations."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torchtitan.models.common.attention import create_varlen_metadata_for_document

from exact_titan.dataset import PackedDataset
from exact_titan.models.hf_config import read_architecture
from exact_titan.runs.metrics_log import read_validations
from exact_titan.runs.run_folder import stored_names
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.titan.ema import KEY, WeightAverage
from exact_titan.titan.model.decoder import decoder_spec
from tests import warm_ranks
from tests.titan.test_training import argv, losses, record, scalars

DECAY = 0.75
SAVED = ["--checkpoint.enable", "--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "0"]
SAVED += ["--checkpoint.async_mode", "disabled"]
AVERAGE = ["--ema.decay", str(DECAY)]
# FSDP2 then keeps all gathered weights after a validation.
UNSHARDED = ["--parallelism.fsdp_reshard_after_forward", "never"]


def stored(run: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights and their average in the checkpoint of a step."""
    file = run / f"step-{step}.pt"
    dcp_to_torch_save(run / f"checkpoint/step-{step}", file)
    content = torch.load(file, weights_only=False)
    average = content.get(KEY, {})
    return {name: content[name] for name in average} if average else content, average


class Half(nn.Module):
    """A float32 weight, a bfloat16 weight, and a weight that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(3, 5, dtype=torch.bfloat16)
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.one.weight


def test_the_average_of_every_dtype_is_float32_and_follows_the_recursion():
    torch.manual_seed(0)
    model = Half()
    average = WeightAverage(0.9, [model], before_exchange=lambda: None)
    assert not average.started
    average.start()
    expected = {name: one.detach().float().clone() for name, one in model.named_parameters()}
    for _ in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.01)
        average.update()
        for name, one in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * one.detach().float()
    found = average.state_dict()
    assert list(found) == ["one.weight", "one.bias", "two.weight", "two.bias", "tied.bias"]
    for name, one in found.items():
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-6)


def test_the_weights_come_back_bit_for_bit_after_an_error_too():
    model, calls = Half(), []
    average = WeightAverage(0.9, [model], before_exchange=lambda: calls.append(model.one.weight.clone()))
    average.start()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}

    def validate() -> None:
        with average.in_model():
            assert torch.equal(model.one.weight, average.state_dict()["one.weight"])
            assert torch.equal(model.two.weight.float(), average.state_dict()["two.weight"])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        validate()
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    # A save of the weights ends before the exchange.
    assert len(calls) == 1
    assert torch.equal(calls[0], before["one.weight"])


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> dict:
    """Runs of 5 steps on 2 ranks, in one launch. ``half`` ends after step 3 and resumes."""
    folder = tmp_path_factory.mktemp("ema")
    seen = ["--validator.enable", "--validator.freq", "2", "--validator.context_gain", "24", *UNSHARDED]
    seen += ["--metrics.enable-tensorboard"]

    def spec(name: str, run: str, *options: str, **more: object) -> dict:
        return {"name": name, "trainer": "exact", "argv": argv(dataset, folder / run, *options, steps=5), **more}

    specs = [
        spec("plain", "plain"),
        spec("whole", "whole", *AVERAGE, *SAVED, *seen),
        spec("half", "half", *AVERAGE, *SAVED, end_after=3),
        spec("resumed", "half", *AVERAGE, *SAVED),
    ]
    return record(2, folder, *specs) | {"folder": folder}


def test_an_average_does_not_change_the_training(runs):
    """The run with the average validates after the steps 2 and 4."""
    assert len(runs["plain"]["steps"]) == 5
    assert losses(runs["whole"]) == losses(runs["plain"])


def test_the_average_resumes_bit_for_bit(runs):
    assert [step["step"] for step in runs["resumed"]["steps"]] == [4, 5]
    (_, whole), (_, resumed) = stored(runs["folder"] / "whole", 5), stored(runs["folder"] / "half", 5)
    assert list(whole) == list(resumed)
    assert all(torch.equal(one, resumed[name]) for name, one in whole.items())


def test_the_average_of_every_step_follows_from_the_weights(runs):
    _, expected = stored(runs["folder"] / "whole", 1)
    for step in range(2, 6):
        weights, average = stored(runs["folder"] / "whole", step)
        assert not any(torch.equal(weights[name], average[name]) for name in weights)
        for name, weight in weights.items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * weight
            torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def cross_entropy(run: Path, weights: dict[str, torch.Tensor], dataset: PackedDataset) -> torch.Tensor:
    """Return the plain cross-entropy of every target of the validation split, in order."""
    model = decoder_spec(read_architecture(run / "model")).model.build()
    model.init_states()
    model.load_state_dict(weights, strict=False)  # the output layer is the embedding
    found = []
    for window in map(dataset.__getitem__, range(len(dataset))):
        positions = window["positions"][None]
        logits = model(window["input"][None], positions, create_varlen_metadata_for_document(positions))
        labels = window["labels"]
        found.append(F.cross_entropy(logits[0], labels, reduction="none")[labels != -100])
    return torch.cat(found)


def test_a_validation_evaluates_the_last_weights_and_their_average(runs, dataset):
    run, val = runs["folder"] / "whole", PackedDataset(dataset.folder, "val")
    by_weights = {"last": read_validations(run), "ema": read_validations(run, "ema")}
    for weights, stored_weights in zip(("last", "ema"), stored(run, 4), strict=True):
        records = by_weights[weights]
        assert [one["step"] for one in records] == [2, 4]
        expected = cross_entropy(run, stored_weights, val)
        assert records[-1]["cross_entropy"] == pytest.approx(expected.mean().item(), rel=1e-5)
        targets = read_target_losses(run, 4, weights)
        assert targets is not None
        torch.testing.assert_close(torch.from_numpy(targets.cross_entropy), expected, rtol=1e-3, atol=1e-4)
        assert records[-1]["context_gain"]["24"]["targets"] > 0
    # The two sets of weights differ by much more than the tolerance.
    last, ema = (records[-1] for records in by_weights.values())
    assert abs(last["cross_entropy"] - ema["cross_entropy"]) > 1e-3
    assert last["context_gain"]["24"]["gain"] != ema["context_gain"]["24"]["gain"]


def test_the_two_validations_have_their_own_tags(runs):
    run = runs["folder"] / "whole"
    shown = scalars(run, images=["validation_ema_loss_by_context", "validation_loss_by_context"])
    for weights, group in (("last", "validation"), ("ema", "validation_ema")):
        found = read_validations(run, weights)[-1]
        for tag, value in (
            (f"{group}_metrics/loss", found["cross_entropy"]),
            (f"{group}_loss_by_context/tail", found["tail"]["cross_entropy"]),
            (f"{group}_loss_by_context/below_tail", found["below_tail"]["cross_entropy"]),
            (f"{group}_context_gain/24", found["context_gain"]["24"]["gain"]),
        ):
            assert list(shown[tag]) == [2, 4]
            assert shown[tag][4] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_an_average_is_turned_on_and_off_and_resumes_on_another_number_of_ranks(dataset, tmp_path):
    run = tmp_path / "run"

    def train(nproc: int, steps: int, *options: str) -> str:
        done = warm_ranks.run(
            nproc, "exact_titan.train", *argv(dataset, run, *SAVED, *options, steps=steps), cwd=tmp_path
        )
        assert done.codes == [0] * nproc, done.stderr[-3000:]
        return done.stdout

    fresh = "the checkpoint has no moving average: it starts from the weights of step 2"
    assert "moving average" not in train(2, 2)
    assert not [name for name in stored_names(run / "checkpoint/step-2") if name.startswith(KEY)]
    assert fresh in train(1, 3, *AVERAGE)
    validated = train(2, 4, *AVERAGE, "--validator.enable", "--validator.freq", "4")
    assert "the checkpoint has no moving average" not in validated
    assert "validation step 4, moving average of the weights  CE " in validated
    assert "  average      moving average of the weights, decay 0.75\n" in validated
    assert "  moving average   CE " in validated
    assert "from step 5 on: ema.decay 0.75 -> 0.0" in train(2, 5)
    assert not [name for name in stored_names(run / "checkpoint/step-5") if name.startswith(KEY)]

    expected, _ = stored(run, 2)
    for step in (3, 4):
        weights, average = stored(run, step)
        for name, weight in weights.items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * weight
            torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-7)
    assert json.loads((run / "run.json").read_text())["config"]["ema"] == {"decay": 0.0}
