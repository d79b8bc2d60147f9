from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.exposure import Buckets
from exact_titan.reports.runs import compare, parse_sides
from exact_titan.runs.metrics_log import MetricsLog
from exact_titan.runs.records import ContextLosses, ValidationSet
from exact_titan.runs.target_losses import TargetLosses, target_losses_file, write_target_losses
from tests.metrics_records import validation_record

WINDOWS = ValidationSet("a" * 64, "val", 32, 12, None)
BUCKETS = Buckets(32)
DOCUMENTS = np.repeat(np.arange(24), 8)
BUCKET = np.tile([0, 0, 0, 1, 1, 2, 2, 2], 24)


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    shift: float = 0.0,
    steps: tuple[int, ...] = (10,),
    windows: ValidationSet = WINDOWS,
    threshold: int = 8,
    keep: int = 2,
) -> Path:
    """Write the records of a run with 24 documents of 8 targets. ``shift`` moves the targets of the tail."""
    log = MetricsLog(folder)
    log.begin(0)
    for step, weights in [(step, weights) for step in steps for weights in ("last", "ema")]:
        # compare reads the last weights. The moving average has another loss.
        moved = 0 if weights == "last" else 7
        ce = moved + np.random.default_rng(seed).normal(4, 1, len(DOCUMENTS)) + shift * (BUCKET > 0) + step / 1000
        sums = [np.bincount(BUCKET, ce).tolist(), np.bincount(BUCKET).tolist()]
        losses = ContextLosses.of(sums, BUCKETS.labels(), BUCKETS.lower_bounds.tolist(), threshold)
        log.append(validation_record(step, losses, weights=weights, windows=windows))
        if keep:
            targets = TargetLosses(step, threshold, windows, ce, BUCKET, DOCUMENTS, np.arange(len(ce)), weights)
            write_target_losses(folder, targets, keep=keep)
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the message of a comparison that is refused."""
    assert main(["compare", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_table_and_picture(tmp_path, capsys):
    standard, exact = write_run(tmp_path / "standard"), write_run(tmp_path / "exact", shift=-0.5)
    png = tmp_path / "compare.png"
    assert main(["compare", str(standard), str(exact), "--png", str(png)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "12 windows of 32 tokens, split val, fingerprint aaaaaaaaaaaa; tail: context of 8 or more" in lines[1]
    assert lines[2].split() == ["context", "targets", "standard", "exact", "exact", "-", "standard"]
    rows = {line[: line.index("  ", 16)].strip(): line.split() for line in lines[3:9]}
    assert list(rows) == ["0-7", "8-15", "16-32", "below the tail", "tail", "all"]
    # The two runs differ by -0.5 in every target of the tail, so the paired error of the tail is 0.
    assert rows["0-7"][-2:] == ["+0.0000", "±0.0000"]
    assert rows["8-15"][1] == "48"
    assert rows["tail"][1] == "120"
    assert rows["tail"][-2:] == ["-0.5000", "±0.0000"]
    assert rows["all"][-2] == "-0.3125"
    assert float(rows["all"][3].removeprefix("±")) > 0.03
    assert "standard error over documents" in lines[9]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_errors_are_paired_and_over_documents(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", seed=1)
    comparison = compare(parse_sides([str(one), str(other)]))
    values = [np.random.default_rng(seed).normal(4, 1, len(DOCUMENTS)) for seed in (0, 1)]
    difference_D = (values[1] - values[0]).reshape(24, 8).mean(axis=1)
    row = comparison.rows[-1]
    assert row.name == "all"
    assert row.differences[0].value == pytest.approx(difference_D.mean(), rel=1e-5)
    assert row.differences[0].error == pytest.approx(difference_D.std(ddof=1) / np.sqrt(24), rel=1e-5)


def test_the_last_common_step_counts(tmp_path, capsys):
    one = write_run(tmp_path / "one", steps=(10, 20, 30), keep=3)
    other = write_run(tmp_path / "other", steps=(10, 20))
    assert compare(parse_sides([str(one), str(other)])).step == 20
    # The targets of step 20 are gone: the table has no errors and says why.
    target_losses_file(one, 20).unlink()
    assert main(["compare", str(one), str(other)]) == 0
    text = capsys.readouterr().out
    all_row = next(line for line in text.splitlines() if line.lstrip().startswith("all"))
    assert [cell[0] for cell in all_row.split()[2:]] == ["4", "4", "±", "+"]
    assert f"no standard error: {target_losses_file(one, 20)} is missing" in text
    target_losses_file(other, 20).unlink()
    assert main(["compare", str(one), str(other)]) == 0
    assert "±" not in capsys.readouterr().out
    third = write_run(tmp_path / "third", steps=(15,))
    assert "no step with a validation of every run" in fails(capsys, one, third)


def test_several_seeds_a_side(tmp_path, capsys):
    shifts = [-0.5, -0.4, -0.6]
    standard = [str(write_run(tmp_path / f"s{n}", seed=n)) for n in range(3)]
    exact = [str(write_run(tmp_path / f"e{n}", seed=n, shift=shift)) for n, shift in enumerate(shifts)]
    arguments = [f"standard={','.join(standard)}", f"exact={','.join(exact)}"]
    rows = {row.name: row for row in compare(parse_sides(arguments)).rows}
    assert rows["tail"].differences[0].value == pytest.approx(-0.5, rel=1e-5)
    assert rows["tail"].differences[0].error == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-4)
    assert main(["compare", *arguments]) == 0
    assert "Student's 95 % interval over 3 pairs" in capsys.readouterr().out
    assert "standard has 3 runs and exact has 2" in fails(capsys, arguments[0], f"exact={','.join(exact[:2])}")


def test_names_are_the_distinguishing_parts_of_the_paths(tmp_path):
    def names(*runs: str) -> list[str]:
        return [side.name for side in parse_sides([str(tmp_path / run) for run in runs])]

    assert names("a/exact", "b/exact") == ["a", "b"]
    assert names("exact", "standard") == ["exact", "standard"]
    assert names("a/exact", "b/exact", "b/standard") == ["a/exact", "b/exact", "b/standard"]
    assert names("outputs/exact") == ["exact"]
    assert names("a", "a/b")[1].endswith("a/b")


def test_runs_that_are_not_alike_are_refused(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    for name, value in (("fingerprint", "b" * 64), ("window", 64), ("windows", 6), ("split", "test")):
        other = write_run(tmp_path / name, windows=replace(WINDOWS, **{name: value}))
        message = fails(capsys, run, other)
        assert f"{name} {value}, not {getattr(WINDOWS, name)}" in message
    tail = write_run(tmp_path / "tail", threshold=16)
    message = fails(capsys, run, tail)
    assert "starts at 8" in message
    assert "at 16" in message
    assert main(["compare", str(run), str(tail), "--threshold", "16"]) == 0
    assert "context of 16 or more" in capsys.readouterr().out
    assert "--threshold is 17" in fails(capsys, run, tail, "--threshold", "17")
    assert "is named twice" in fails(capsys, run, run)
    assert "no run given" in fails(capsys)
    assert "no such folder" in fails(capsys, run, tmp_path / "nothing")
    (tmp_path / "old").mkdir()
    assert "has no metrics.jsonl" in fails(capsys, run, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metrics.jsonl").touch()
    assert "has no validation" in fails(capsys, run, tmp_path / "empty")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/metrics.jsonl").write_text('{"kind": "validation", "step": 10, "buckets": {}}\n')
    assert "validation of step 10 has no threshold" in fails(capsys, run, tmp_path / "foreign")
    target_losses_file(run, 10).write_bytes(b"no tensors")
    assert "is damaged" in fails(capsys, run)
