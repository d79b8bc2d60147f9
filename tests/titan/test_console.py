"""The lines of the screen, and the screen and the log files of whole runs."""

import io
import logging
import logging.handlers
import re
import sys
import warnings
from dataclasses import replace

import pytest

from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.records import ContextGain, ContextLosses, Mean, Pace
from exact_titan.titan import console, logs
from exact_titan.titan.console import FILE_ONLY, Screen, duration, progress_bar, short, train_line, validation_lines
from tests import warm_ranks
from tests.metrics_records import train_record, validation_record
from tests.titan.test_training import argv

LOSSES = ContextLosses(2.3141, 1_234_567, Mean(2.3399, 1_000_000), Mean(2.1806, 234_567), 4096, {})
RECORD = train_record(
    120,
    LOSSES,
    steps=1000,
    loss=2.5409,
    learning_rates={"AdamW": 2e-5},
    grad_norm=0.9078,
    tokens_per_second=36_412,
    mfu_percent=34.2,
    pace=Pace({}, 1, 0, 1, 1.7028),
)
VALIDATION = validation_record(250, LOSSES, steps=1000, seconds=41.2)
# torchtitan's line of a log step, its prefix, and the levels of logging.
NOISE = re.compile(r"\[titan\]|INFO|\[GC\]|Warning|step: ")


def test_the_line_of_a_log_step():
    assert train_line(RECORD) == (
        "step 120/1000 12 %  CE 2.314  tail 2.181  below the tail 2.340  loss 2.541 (weighted)  lr 2.0e-05  grad 0.91  "
        "36.4k tok/s  MFU 34 %  eta 1:42:10"
    )


def test_values_that_do_not_exist():
    """The first log step on a CPU has no peak of the device and no pace. A stream of short documents has no tail."""
    losses = replace(LOSSES, tail=Mean(None, 0))
    pace = replace(RECORD.pace, hours_left=None)
    assert train_line(replace(RECORD, step=1, losses=losses, mfu_percent=None, pace=pace)) == (
        "step 1/1000 0 %  CE 2.314  tail -  below the tail 2.340  loss 2.541 (weighted)  lr 2.0e-05  grad 0.91  "
        "36.4k tok/s  eta -"
    )
    assert "  tail -  below the tail 2.340  " in validation_lines(replace(VALIDATION, losses=losses))[0]


def test_the_lines_of_a_validation():
    line = (
        "validation step 250  CE 2.314  tail 2.181  below the tail 2.340  "
        "(1,234,567 targets, 234,567 in the tail, 41 s)"
    )
    assert validation_lines(VALIDATION) == [line]
    gains = {"1024": ContextGain(0.01234, 234_567, 30.4), "8192": ContextGain(None, 0, 12)}
    assert validation_lines(replace(VALIDATION, context_gain=gains)) == [
        line,
        "context gain step 250  beyond 1,024 tokens +0.0123 (234,567 targets, 30 s)  beyond 8,192 tokens - (0 targets, "
        "12 s)",
    ]
    average = replace(VALIDATION, weights="ema", context_gain=gains)
    assert [shown.partition("  ")[0] for shown in validation_lines(average)] == [
        "validation step 250, moving average of the weights",
        "context gain step 250, moving average of the weights",
    ]


def test_rates_and_durations():
    assert [short(number) for number in (7.4, 812, 999.96, 36_412, 1_249_000)] == ["7", "812", "1.0k", "36.4k", "1.2M"]
    assert [duration(seconds) for seconds in (0.4, 61, 6130, 360_000)] == ["0:00:00", "0:01:01", "1:42:10", "100:00:00"]


@pytest.fixture
def of_this_package(monkeypatch):
    """Treat this test file as a file of the package."""
    monkeypatch.setattr(console, "_PACKAGE", str(console.Path(__file__).parent))


@pytest.mark.parametrize(
    ("rank", "out", "err"), [(0, "shown\n", "warning: ours\nerror: bad\n"), (1, "", "rank 1: error: bad\n")]
)
def test_the_screen_shows_this_packages_messages_on_rank_0_and_errors_on_every_rank(
    of_this_package, capsys, rank, out, err
):
    log = logging.Logger("any")
    log.addHandler(Screen(rank))
    log.info("shown")
    log.info("not shown", extra=FILE_ONLY)
    log.warning("ours")
    log.error("bad")
    library = logging.Logger("library")
    library.addHandler(Screen(rank))
    record = library.makeRecord("library", logging.WARNING, "/site-packages/library.py", 1, "noise", (), None)
    library.handle(record)
    assert capsys.readouterr() == (out, err)


def test_a_progress_bar_stays_below_the_lines_of_a_terminal(of_this_package, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    log = logging.Logger("any")
    log.addHandler(Screen(0))
    bar = progress_bar(30, 100)
    bar.refresh()
    log.info("a line")
    bar.close()
    drawn = [part.strip() for part in re.split(r"[\r\n]", screen.getvalue()) if part.strip()]
    assert drawn[drawn.index("a line") - 1].startswith("30 % ")
    assert drawn[drawn.index("a line") + 1].endswith("30/100 steps  00:00")


def test_without_a_terminal_there_is_no_bar(capsys):
    bar = progress_bar(0, 10)
    bar.update()
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_log_files_hold_library_messages_warnings_and_crashes_over_restarts(monkeypatch, tmp_path):
    logging.captureWarnings(False)  # an earlier test may have left it on, under another filter of pytest
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    library = logging.getLogger("a.library")
    for number in (1, 2):
        monkeypatch.setattr(sys, "excepthook", lambda *_: None)
        monkeypatch.setattr(logs, "_held", logging.handlers.MemoryHandler(100, flushLevel=99, flushOnClose=False))
        library.handlers[:] = [logging.StreamHandler()]
        library.propagate = False
        logs.start_logging(3)
        root.info(f"held {number}")
        file = logs.open_log_file(tmp_path, 3)
        library.warning(f"noise {number}")
        warnings.warn(f"careful {number}", stacklevel=1)
        sys.excepthook(ValueError, ValueError(f"broken {number}"), None)
    logging.captureWarnings(False)
    assert file == tmp_path / "logs/rank_3.log"
    text = file.read_text()
    found = re.findall(r"=== start|held \d|noise \d|careful \d(?=\n)|ValueError: broken \d", text)
    assert found == [
        line.format(number)
        for number in (1, 2)
        for line in ("=== start", "held {}", "noise {}", "careful {}", "ValueError: broken {}")
    ]
    assert re.search(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO root: held 1$", text)


def test_a_run_shows_its_header_lines_and_summary_and_keeps_the_noise_in_its_logs(dataset, tmp_path):
    options = ["--metrics.log_freq", "2", "--validator.enable", "--validator.freq", "2", "--checkpoint.enable"]
    options += ["--checkpoint.interval", "100"]

    def train(steps: int) -> str:
        arguments = argv(dataset, tmp_path / "out", *options, steps=steps)
        done = warm_ranks.run(2, "exact_titan.train", *arguments, cwd=tmp_path)
        assert (done.codes, done.stderr) == ([0, 0], "")
        assert not NOISE.search(done.stdout), done.stdout
        return done.stdout

    first, second = train(4), train(6)
    (header,) = re.findall(r"(?m)^exact_titan: step 1 of 4\n((?:  .*\n)+)step 1/4", first)
    rows = {line[2:13].strip(): line[15:] for line in header.splitlines()}
    assert list(rows) == [
        *["rule", "weights", "data", "validation", "model", "rope", "start", "steps", "ranks", "precision"],
        *["recompute", "attention", "compiled", "checkpoints", "folder"],
    ]
    assert rows["rule"].startswith("exact, alpha 0.15, gamma 0.5, the tail starts at 16 tokens of context, ")
    assert re.fullmatch(r"1 below the tail, 16-31 1\.\d{3}, 32-64 1\.\d{3}", rows["weights"])
    assert dataset.manifest.fingerprint[:8] in rows["data"]
    assert rows["start"] == "random weights, seed 7"
    assert rows["ranks"] == "2 on cpu, parameters sharded over 2 (FSDP2)"
    assert rows["precision"] == "parameters float32, compute float32, gradients reduced in float32"
    assert rows["attention"] == "torch's SDPA, one document at a time"
    assert f"  start        resumed from step 4, {tmp_path}/out/checkpoint/step-4\n" in second

    assert re.findall(r"(?m)^step (\d)/(\d) (\d+) %  CE ", first + second) == [
        *[("1", "4", "25"), ("2", "4", "50"), ("4", "4", "100"), ("6", "6", "100")]
    ]
    records = read_records(tmp_path / "out", "validation")
    shown = re.findall(
        r"(?m)^validation step (\d)  CE (\S+)  tail (\S+)  below the tail \S+  \((\S+) targets", first + second
    )
    assert shown == [
        (
            str(record["step"]),
            f"{record['cross_entropy']:.3f}",
            f"{record['tail']['cross_entropy']:.3f}",
            f"{record['targets']:,}",
        )
        for record in records
    ]
    assert f"checkpoint {tmp_path}/out/checkpoint/step-6 saved\n" in second

    (summary,) = re.findall(r"(?m)^finished: step 6 of 6, 1,536 tokens, .*\n((?:  .*\n)+)\Z", second)
    best = min(records, key=lambda record: record["cross_entropy"])
    assert f"best validation  CE {best['cross_entropy']:.3f}" in summary
    assert f"last validation  CE {records[-1]['cross_entropy']:.3f}" in summary
    assert f"checkpoint       {tmp_path}/out/checkpoint/step-6\n" in summary
    assert f"exact-titan export {tmp_path}/out --out MODEL_FOLDER\n" in summary
    assert f"exact-titan compare {tmp_path}/out OTHER_RUN\n" in summary

    for rank in (0, 1):
        log = (tmp_path / f"out/logs/rank_{rank}.log").read_text()
        assert log.count(f", rank {rank} of 2, ") == 2
        assert log.count("Training starts at step") == 2
        assert len(re.findall(r"\[GC\]", log)) >= 2
