import importlib.util
import os
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchtitan.components.metrics import MetricsProcessor

from exact_titan.errors import InputError
from exact_titan.titan.trackers import TensorBoard, WandB, _charts, check_wandb, known_id, scalars
from tests.runs.test_metrics_log import train, validation
from tests.support import largest_file

BUCKETS = ["0-7", "8-15", "16-32"]


def test_tags_have_no_parentheses_and_no_missing_values():
    tags = scalars(train(2)) | scalars(validation(2))
    assert not [tag for tag in tags if re.search(r"[()%]", tag)]
    assert None not in tags.values()
    # The pinned names, the names of the tail, and a bucket without targets.
    assert tags["loss_metrics/cross_entropy"] == 14 / 5
    assert tags["loss_by_context/tail"] == tags["validation_loss_by_context/tail"] == 4
    assert tags["loss_by_context/below_tail"] == 2
    assert tags["validation_loss_by_context/below_tail"] == 2
    assert tags["validation_context_gain/16"] == 0.25
    assert "validation_context_gain/32" not in tags
    # The moving average of the weights has its own tags, all of them.
    average = scalars(validation(2, "ema"))
    assert average == {
        tag.replace("validation_", "validation_ema_", 1): value for tag, value in scalars(validation(2)).items()
    }
    assert tags["exposure/share/0-7"] == 3 / 5
    assert tags["exposure/weight/16-32"] == 1.15
    assert "loss_by_context/8-15" not in tags
    assert "mfu_percent" not in tags


def test_every_chart_has_one_tag_and_the_loss_comes_first():
    known = scalars(train(2)) | scalars(validation(2))
    known |= {f"{group}/8-15": 0.0 for group in ("loss_by_context", "validation_loss_by_context")}
    known |= {f"step_time/{part}_seconds": 0.0 for part in ("data", "forward_backward", "optimizer", "checkpoint")}
    layout = _charts(BUCKETS)
    assert next(iter(layout)) == "Cross-entropy"
    for charts in layout.values():
        for _, (pattern,) in charts.values():
            assert len([tag for tag in known if re.match(pattern, tag)]) == 1


def test_a_resumed_run_is_one_wandb_run(tmp_path, monkeypatch):
    """The package wandb, offline."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def start(step: int) -> str:
        for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
            os.environ.pop(name, None)
        tracker = WandB(tmp_path, {"loss": {"rule": "exact"}})
        tracker.begin(step, BUCKETS)
        run_id = wandb.run.id
        assert wandb.run.config["loss"] == {"rule": "exact"}
        tracker.log(scalars(train(step + 2)), step + 2)
        tracker.close()
        return run_id

    first = start(0)
    assert start(4) == first
    assert (tmp_path / "wandb_run_id").read_text() == f"{first}\n"
    # A new run in the same folder is another W&B run.
    assert start(0) != first
    assert len(list(Path(tmp_path / "wandb").glob("offline-run-*"))) == 3


def test_wandb_without_the_package_is_refused(monkeypatch):
    config = MetricsProcessor.Config(enable_wandb=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"metrics\.enable_wandb is on, but .* pip install wandb"):
        check_wandb(config)
    check_wandb(MetricsProcessor.Config())


def test_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def fail(**kwargs):
        raise RuntimeError("no network\nand more")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(InputError, match=r"W&B does not start \(no network and more\): run `wandb login`"):
        WandB(tmp_path, None).begin(0, BUCKETS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.begin(0, BUCKETS)
    board.log({"loss": 1.0}, 1)
    with largest_file(10):
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large") as caught:
                board.log({"loss": 1.0}, step)
            assert caught.value.filename == str(tmp_path)
    board.log({"loss": 1.0}, 4)
    board.close()
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [point.step for point in points] == [1, 4]


def test_a_file_without_an_id_of_wandb_is_named(tmp_path):
    file = tmp_path / "wandb_run_id"
    assert known_id(file) == ""
    file.write_text("ab12.C_d-3\n")
    assert known_id(file) == "ab12.C_d-3"
    for text in (b"a/../b\n", b"a\0", b"\xff", b"a b", b"x" * 1000, "\u202e".encode()):
        file.write_bytes(text)
        with pytest.raises(InputError, match="wandb_run_id has no id of a W&B run"):
            known_id(file)
