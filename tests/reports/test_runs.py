from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.reports.runs import read_validation


def write_run(folder: Path, losses: dict[int, dict[str, float]], name: str = "tb/one") -> Path:
    """Write a run with these cross-entropies per bucket in the validation of each step. The total is their mean."""
    with SummaryWriter(str(folder / name)) as writer:
        for step, by_context in losses.items():
            for label, loss in by_context.items():
                writer.add_scalar(f"validation_loss_by_context/{label}", loss, step)
            writer.add_scalar("validation_metrics/loss", sum(by_context.values()) / len(by_context), step)
    return folder


def test_the_last_validation_of_a_resumed_run_counts(tmp_path):
    run = write_run(tmp_path / "run", {10: {"0-7": 5.0, "8-16": 4.0}, 20: {"0-7": 4.0, "8-16": 3.0}})
    write_run(run, {20: {"0-7": 4.0, "8-16": 3.0}, 30: {"8-16": 2.0, "0-7": 3.0}}, name="tb/two")
    validation = read_validation(run)
    assert validation.step == 30
    assert validation.by_context == {"0-7": 3.0, "8-16": 2.0}
    assert validation.total == 2.5


def test_table_and_picture(tmp_path, capsys):
    standard = write_run(tmp_path / "standard", {10: {"0-7": 5.0, "8-16": 4.0}})
    exact = write_run(tmp_path / "exact", {10: {"0-7": 5.25, "8-16": 3.5}})
    png = tmp_path / "compare.png"
    assert main(["compare", str(standard), str(exact), "--png", str(png)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["context", "standard", "exact", "exact", "-", "standard"]
    assert lines[2].split() == ["0-7", "5.0000", "5.2500", "+0.2500"]
    assert lines[3].split() == ["8-16", "4.0000", "3.5000", "-0.5000"]
    assert lines[4].split() == ["all", "4.5000", "4.3750", "-0.1250"]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys):
    run = write_run(tmp_path / "run", {10: {"0-7": 5.0, "8-16": 4.0}})
    other = write_run(tmp_path / "other", {10: {"0-7": 5.0, "8-32": 4.0}})
    assert main(["compare", str(run), str(other)]) == 2
    assert "other was validated in other buckets than run" in capsys.readouterr().err
    with pytest.raises(InputError, match="has no validation in its TensorBoard files"):
        read_validation(tmp_path / "nothing")
