"""The records of a run that is killed and resumed: metrics.jsonl, TensorBoard and the targets of the validations."""

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from exact_titan.runs.metrics_log import FILE_NAME
from exact_titan.runs.target_losses import read_target_losses
from tests import warm_ranks
from tests.titan.test_training import RUNNER, argv, record

# Times, memory, and values that depend on the number of ranks.
_MEASURED = {
    *("time", "seconds_per_step", "tokens_per_second", "tflops", "memory", "step_seconds", "imbalance_data_seconds"),
    *("imbalance_attention", "hours_left", "seconds", "devices", "max_loss"),
}


def options(dataset, folder: Path) -> list[str]:
    """Log at the steps 1, 2, 4, …, save at 3, 6, 9 and 10, validate at 3, 6 and 9."""
    saved = ["--checkpoint.enable", "--checkpoint.interval", "3", "--checkpoint.async_mode", "disabled"]
    saved += ["--validator.enable", "--validator.freq", "3", "--metrics.log_freq", "2", "--metrics.enable-tensorboard"]
    return argv(dataset, folder, *saved, "--loss.refresh_steps", "5", "--ema.decay", "0.75", steps=10)


def killed(nproc: int, folder: Path, arguments: list[str], step: int) -> None:
    folder.mkdir(exist_ok=True)
    spec = {"name": "run", "trainer": "exact", "argv": arguments, "kill_after": step}
    (folder / "killed.json").write_text(json.dumps([spec]))
    done = warm_ranks.run(nproc, RUNNER, folder / "killed.json", folder / "none.json", cwd=folder)
    assert -signal.SIGKILL in done.codes, done.stderr[-3000:]


def records(run: Path) -> list[dict]:
    """Return the records without the measured values."""
    lines = (run / FILE_NAME).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in _MEASURED} for line in lines]


def alike(one: object, other: object) -> bool:
    """Return whether two values of records are equal within the rounding of another order of sums."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return one == (pytest.approx(other, rel=1e-4) if isinstance(other, float) else other)


def points(run: Path) -> dict[str, list[int]]:
    """Return the steps of every tag, as TensorBoard shows the folder of the run."""
    (folder,) = {file.parent for file in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_has_the_records_of_an_unbroken_run(dataset, tmp_path, nproc):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    record(nproc, tmp_path, {"name": "run", "trainer": "exact", "argv": options(dataset, unbroken)})
    # The checkpoints of steps 3 and 6 are inside a log interval.
    for step in (4, 8):
        killed(nproc, tmp_path / "ranks", options(dataset, broken), step)
    record(3 - nproc, tmp_path, {"name": "run", "trainer": "exact", "argv": options(dataset, broken)})

    expected, found = records(unbroken), records(broken)
    steps = [(one["kind"], one["step"]) for one in expected]
    train = [("train", step) for step in (1, 2, 4, 6, 8, 10)]
    validations = [("validation", step) for step in (3, 6, 9)]
    assert steps == sorted([*train, *validations, *validations], key=lambda one: (one[1], one[0]))
    assert [one["weights"] for one in found if one["kind"] == "validation"] == ["last", "ema"] * 3
    assert [(one["kind"], one["step"]) for one in found] == steps
    for one, other in zip(found, expected, strict=True):
        assert alike(one, other), (one, other)
    # A launch that died had logged the steps 4 and 8 after its last checkpoint.
    replaced = [json.loads(line)["step"] for line in (broken / "metrics.replaced.jsonl").read_text().splitlines()]
    assert replaced == [4, 8]

    shown, whole = points(broken), points(unbroken)
    # A launch knows its pace from its second log step on.
    assert (shown.pop("progress/hours_left"), whole.pop("progress/hours_left")) == ([2, 6, 10], [2, 4, 6, 8, 10])
    assert shown == whole
    assert shown["loss_metrics/cross_entropy"] == shown["lr/AdamW"] == [1, 2, 4, 6, 8, 10]
    assert shown["validation_loss_by_context/tail"] == [3, 6, 9]
    assert shown["validation_ema_loss_by_context/tail"] == [3, 6, 9]
    assert not [tag for tag in shown if "(" in tag]

    assert sorted(file.name for file in (broken / "validation").iterdir()) == [
        *("step-6-ema.safetensors", "step-6.safetensors", "step-9-ema.safetensors", "step-9.safetensors"),
    ]
    for step, weights in itertools.product((6, 9), ("last", "ema")):
        one, other = read_target_losses(broken, step, weights), read_target_losses(unbroken, step, weights)
        assert one is not None
        assert other is not None
        assert np.array_equal(one.document, other.document)
        np.testing.assert_allclose(one.cross_entropy, other.cross_entropy, rtol=1e-3)
