"""metrics.jsonl after interruptions: no gap, no step twice, no half line, no lost record."""

import json
import math
import random
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.runs.metrics_log import MetricsLog, read_records, read_validations
from exact_titan.runs.records import (
    ContextGain,
    ContextLosses,
    TrainRecord,
    ValidationRecord,
    ValidationSet,
    Weights,
)
from tests.metrics_records import train_record, validation_record
from tests.support import largest_file

LOSSES = ContextLosses.of([[6.0, 0.0, 8.0], [3, 0, 2]], ["0-7", "8-15", "16-32"], [0, 8, 16], 16)


def train(step: int, grad_norm: float = 1.0) -> TrainRecord:
    return train_record(step, LOSSES, grad_norm=grad_norm)


def validation(step: int, weights: Weights = "last") -> ValidationRecord:
    return validation_record(
        step,
        LOSSES,
        weights=weights,
        context_gain={"16": ContextGain(0.25, 2, 1.5), "32": ContextGain(None, 0, 1.5)},
        windows=ValidationSet("f" * 64, "val", 32, 5, None),
    )


def steps(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["kind"], record["step"]) for record in map(json.loads, lines)]


def test_means_below_and_in_the_tail():
    assert (LOSSES.cross_entropy, LOSSES.targets) == (14 / 5, 5)
    assert (LOSSES.below_tail.cross_entropy, LOSSES.below_tail.targets) == (2, 3)
    assert (LOSSES.tail.cross_entropy, LOSSES.tail.targets) == (4, 2)
    assert LOSSES.buckets["8-15"].cross_entropy is None


def test_a_number_that_is_not_finite_is_plain_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.begin(0)
    for step, norm in enumerate((math.nan, math.inf, -math.inf), start=1):
        log.append(train(step, norm))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse)["grad_norm"] for line in lines]
    assert found == ["NaN", "Infinity", "-Infinity"]
    read = [one["grad_norm"] for one in read_records(tmp_path, "train")]
    assert math.isnan(read[0])
    assert read[1:] == [math.inf, -math.inf]
    assert read_records(tmp_path, "train")[0]["buckets"]["8-15"] == {"cross_entropy": None, "targets": 0}


@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_any_moment_has_the_records_of_an_unbroken_run(tmp_path, seed):
    """Each launch dies after a random number of bytes, and resumes from a random saved step."""
    rng = random.Random(seed)
    expected = []
    for step in range(1, 41):
        expected += [("train", step)] if step % 2 == 0 else []
        expected += [("validation", step)] * 2 if step % 5 == 0 else []
    saved, validated, ended = 0, True, False
    while not ended:
        log = MetricsLog(tmp_path)
        log.begin(saved, validated=validated)
        last = rng.randint(saved, 45)
        step = saved
        if not validated:
            log.append(validation(step))
            log.append(validation(step, "ema"))
            validated = True
        while step < min(last, 40):
            step += 1
            if step % 2 == 0:
                log.append(train(step))
            if step % 3 == 0:
                saved, validated = step, step % 5 != 0
            if step % 5 == 0 and not (step == last < 40 and rng.random() < 0.5):
                log.append(validation(step))
                if step == last < 40 and rng.random() < 0.5:
                    break  # a kill between the records of the last weights and of their average
                log.append(validation(step, "ema"))
                if step == saved:
                    validated = rng.random() < 0.7  # a kill between the record and its mark in the checkpoint
        ended = step == 40
        log.close()
        if not ended and rng.random() < 0.5:
            with (tmp_path / "metrics.jsonl").open("a") as out:
                out.write('{"kind":"train","st')
    assert steps(tmp_path) == expected
    for weights in ("last", "ema"):
        assert [one["step"] for one in read_validations(tmp_path, weights)] == list(range(5, 41, 5))


def test_the_weights_of_a_validation(tmp_path):
    log = MetricsLog(tmp_path)
    log.begin(0)
    log.append(validation(5))
    log.append(validation(5, "ema"))
    log.close()
    (last,), (ema,) = read_validations(tmp_path), read_validations(tmp_path, "ema")
    assert (last["weights"], ema["weights"]) == ("last", "ema")
    assert last["context_gain"] == {
        "16": {"gain": 0.25, "targets": 2, "seconds": 1.5},
        "32": {"gain": None, "targets": 0, "seconds": 1.5},
    }
    # An older version wrote no weights.
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace('"weights":"last",', ""))
    assert len(read_validations(tmp_path)) == 1


def test_a_new_run_in_the_folder_of_another_run_says_where_the_old_records_are(tmp_path):
    log = MetricsLog(tmp_path)
    assert log.begin(0) is None
    log.append(train(2))
    log.close()
    moved = MetricsLog(tmp_path).begin(0)
    assert moved is not None
    assert "metrics.replaced.jsonl" in moved
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert json.loads((tmp_path / "metrics.replaced.jsonl").read_text())["step"] == 2


def test_reading_a_run_that_still_writes_and_files_that_are_no_records(tmp_path):
    log = MetricsLog(tmp_path)
    log.begin(0)
    log.append(train(2))
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as out:
        out.write('{"kind":"tra')
    assert [one["step"] for one in read_records(tmp_path, "train")] == [2]
    with file.open("a") as out:
        out.write("\n")
    with pytest.raises(InputError, match="line 2 is not a record"):
        read_records(tmp_path, "train")
    file.unlink()
    with pytest.raises(InputError, match=r"has no metrics\.jsonl"):
        read_records(tmp_path, "train")
    with pytest.raises(InputError, match="no such folder"):
        read_records(tmp_path / "nothing", "train")


def test_a_record_that_a_full_disk_refuses_is_written_later(tmp_path: Path) -> None:
    log, file = MetricsLog(tmp_path), tmp_path / "metrics.jsonl"
    log.begin(0)
    log.append(train(1))
    with largest_file(file.stat().st_size + 10):
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large") as caught:
                log.append(train(step))
            assert caught.value.filename == str(file)
        with pytest.raises(OSError, match="File too large"):
            log.flush()  # no checkpoint is saved without its records
    assert [one["step"] for one in read_records(tmp_path, "train")] == [1]
    assert file.read_bytes().endswith(b"}\n")
    log.append(train(4))
    assert [one["step"] for one in read_records(tmp_path, "train")] == [1, 2, 3, 4]
    with largest_file(file.stat().st_size + 10), pytest.raises(OSError, match="File too large"):
        log.append(train(5))
    log.close()
    assert [one["step"] for one in read_records(tmp_path, "train")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"buckets": [1]}, r"key 'buckets' is \[1\]: it must be an object"),
        ({"cross_entropy": "low"}, "key 'cross_entropy' is 'low': it must be a number"),
        ({"tail": {"cross_entropy": 1.0, "targets": "3"}}, r"key 'tail\.targets' is '3': it must be an integer"),
        ({"loss": True}, "key 'loss' is True: it must be a number"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path, change, reason):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, **change}) + "\n")
    with pytest.raises(InputError, match=f"metrics.jsonl, line 1: {reason}"):
        read_records(tmp_path, "train")


def test_a_missing_value_is_named_when_it_is_read(tmp_path):
    line = {"kind": "train", "step": 1, "weights": {"0-1": 1.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (record,) = read_records(tmp_path, "train")
    assert record == line
    assert record.get("buckets") is None
    for table, key in ((record, "buckets"), (record["weights"], "2-3")):
        with pytest.raises(InputError, match=f"metrics.jsonl, line 1 has no value '{key}'"):
            table[key]
