"""A toy study from its file to its proof: an unbroken one, interrupted ones, and one that is not paired any more."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.reports.study import write_report
from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.run_record import read_record
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.study.folder import locked
from exact_titan.study.results import read_results
from tests.study import toy
from tests.support import pack_lengths


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory) -> Path:
    """The folder of a finished study, with its file next to it."""
    folder = tmp_path_factory.mktemp("study")
    file = toy.write(folder, dataset.folder)
    assert toy.train(file, folder / "out") == 0
    return folder / "out"


def results(out: Path) -> dict[str, list]:
    """Return what the runs have measured: the validations, and the losses of the targets of the last validation."""
    found = {}
    for file in sorted(out.rglob("metrics.jsonl")):
        run = file.parent
        validations = [(one["step"], one["cross_entropy"], one["tail"]) for one in read_records(run, "validation")]
        targets = read_target_losses(run, validations[-1][0])
        assert targets is not None
        losses = [one["cross_entropy"] for one in read_records(run, "train")]
        found[str(run.relative_to(out))] = [validations, losses, targets.cross_entropy.tolist()]
    return found


def report(out: Path) -> dict[str, str]:
    """Make the report of a study. Return its tables, and its text after the proof, which names the folder."""
    write_report(out)
    texts = {file.name: file.read_text() for file in (out / "report").iterdir() if file.suffix in (".csv", ".md")}
    texts["report.md"] = texts["report.md"].partition("## Is the rule better?")[2]
    assert texts["report.md"]
    return texts


def times(out: Path) -> dict[str, int]:
    """Return the time of change of every file of the runs."""
    files = [file for file in out.rglob("*") if file.is_file() and file.name not in ("proof.json", ".lock")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_a_small_study_is_trained_once(dataset, tmp_path, capsys):
    """One stage, two arms, one seed. Both runs start from the same weights and read the same windows."""
    change = ("seeds = [0, 1]", "seeds = [3]")
    file, out = toy.write(tmp_path, dataset.folder, change, text=toy.ONE_STAGE), tmp_path / "out"
    assert toy.train(file, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[1/2\] only, arm \w+, start 0, seed 3: validation \d\.\d{4} at step 4, .*", lines[0])
    assert "paired: 2 runs finished" in lines
    assert "  start 0: 2 runs of only from weights of debug.seed 0" in lines
    assert "  only, arm exact: loss.alpha 0.15 -> 0.5, loss.rule standard -> exact" in lines
    standard, exact = (losses for _, losses, _ in results(out).values())
    assert standard[0] == exact[0]
    assert standard[-1] != exact[-1]
    assert "one pair gives no interval" in write_report(out)
    before, machine = times(out), toy.ToyMachine(str(file))
    assert toy.train(file, out, machine) == 0
    assert machine.started == []
    assert times(out) == before
    other = toy.write(tmp_path, dataset.folder, ("seeds = [0, 1]", "seeds = [4]"), text=toy.ONE_STAGE)
    with pytest.raises(InputError, match=r"has another study: seeds\[0\] is 3 there, and 4 now"):
        toy.train(other, out)
    assert times(out) == before


@pytest.mark.slow
def test_the_runs_are_in_their_folders_and_start_from_one_start(unbroken):
    found = read_results(unbroken)
    assert [(run.arm, run.start, run.seed) for run in found.runs] == [
        ("standard", 0, 0),
        ("standard", 0, 1),
        ("exact", 0, 0),
        ("exact", 0, 1),
    ]
    records = [read_record(run.folder) for run in found.runs]
    assert len({json.dumps(record.weights) for record in records if record}) == 1
    assert [record.config["dataloader"]["seed"] for record in records if record] == [0, 1, 0, 1]
    assert {record.config["loss"]["rule"] for record in records if record} == {"standard", "exact"}
    measured = results(unbroken)
    assert len(measured) == 5
    # The arms of a pair read the same windows from the same weights. The losses of the first step are equal.
    first = {name: losses[0] for name, (_, losses, _) in measured.items()}
    assert first["extension/exact/start-0-seed-0"] == first["extension/standard/start-0-seed-0"]
    assert first["extension/exact/start-0-seed-0"] != first["extension/exact/start-0-seed-1"]


@pytest.mark.slow
def test_the_proof_has_the_start_the_windows_and_the_differences(unbroken, dataset):
    proof = json.loads((unbroken / "proof.json").read_text())
    assert (proof["faults"], proof["notes"]) == ([], [])
    (start,) = proof["starts"]
    assert (start["start"], start["stage"], start["runs"], start["whole"]) == (0, "extension", 4, True)
    assert len(start["sha256"]) == 64
    assert proof["differences"] == {
        "extension": {"exact": {"loss.alpha": [0.15, 0.5], "loss.rule": ["standard", "exact"]}}
    }
    orders = {one["name"]: one for one in proof["windows"]}
    assert list(orders) == ["start, start 0", "extension, start 0, seed 0", "extension, start 0, seed 1"]
    assert orders["extension, start 0, seed 0"]["sha256"] != orders["extension, start 0, seed 1"]["sha256"]
    assert list(orders["extension, start 0, seed 0"]["shown"]) == ["1", "2", "3", "4"]
    assert len(proof["runs"]) == 5


@pytest.mark.slow
def test_a_finished_study_is_left_alone(unbroken, capsys):
    before = times(unbroken)
    machine = toy.ToyMachine("study.toml")
    assert toy.train(unbroken.parent / "study.toml", unbroken, machine) == 0
    assert machine.started == []
    assert times(unbroken) == before
    out = capsys.readouterr().out
    assert "all 5 runs are finished: nothing to train" in out
    assert "paired: 5 runs finished" in out
    assert "start 0: 4 runs of extension from" in out


@pytest.mark.slow
def test_a_run_with_other_data_is_not_paired_any_more(unbroken, dataset, tmp_path):
    """The dataset is packed again, with other documents, between two calls."""
    packed = pack_lengths(tmp_path / "data", [60] * 80, seq_len=64, val_fraction=0.1)
    file = toy.write(tmp_path, packed.folder)
    machine = toy.ToyMachine(str(file), parallel=1, on_start=lambda number, run: _stop_at(2, number))
    assert toy.train(file, tmp_path / "out", machine) == 75
    shutil.rmtree(packed.folder)
    pack_lengths(tmp_path / "data", [60] * 80, seq_len=64, val_fraction=0.1, seed=5)
    with pytest.raises(InputError, match=r"start-0 was trained with other options or data: .*dataset_path") as raised:
        toy.train(file, tmp_path / "out")
    assert "put the old files or version back" in str(raised.value)


def _stop_at(wanted: int, number: int) -> None:
    if number == wanted:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_folder_of_another_study(unbroken, dataset, tmp_path):
    file = toy.write(tmp_path, dataset.folder, ("seeds = [0, 1]", "seeds = [0, 2]"))
    before = times(unbroken)
    with pytest.raises(InputError, match=r"has another study: seeds\[1\] is 1 there, and 2 now"):
        toy.train(file, unbroken)
    file = toy.write(
        tmp_path, dataset.folder, ('[arms.exact.loss]\nrule = "exact"', '[arms.exact.loss]\nrule = "exact"\ngamma = 0')
    )
    with pytest.raises(InputError, match=r"another study: arms.exact.loss.gamma is not set there, and 0 now"):
        toy.train(file, unbroken)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match=r"other has other files, and no study.json"):
        toy.train(file, tmp_path / "other")
    assert times(unbroken) == before


def test_two_processes_do_not_train_one_study(tmp_path):
    held, again = locked(tmp_path / "out"), locked(tmp_path / "out")
    with held, pytest.raises(InputError, match="another process trains the study"), again:
        pass
    with locked(tmp_path / "out"):
        pass


def test_a_run_that_fails_is_named_with_its_log(dataset, tmp_path, capsys):
    """The learning rate of all arms lets the loss overflow."""
    changes = [("lr = 1e-2", "lr = 1e30"), ("warmup_steps = 2", "warmup_steps = 0")]
    file = toy.write(tmp_path, dataset.folder, *changes, text=toy.ONE_STAGE)
    assert toy.train(file, tmp_path / "out", toy.ToyMachine(str(file), parallel=1)) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert "only, arm standard, start 0, seed 0: ended with exit code 65: exact_titan.train: stopped: " in line
    assert str(tmp_path / "out/only/standard/start-0-seed-0.log") in line


@pytest.mark.slow
def test_an_interrupted_study_resumes_to_the_same_results(unbroken, dataset, tmp_path):
    """The real command, in forks of the warm process: Ctrl-C, then SIGKILL, then the end.

    The terminal sends Ctrl-C to all processes of the command's group. SIGKILL ends the command, and every run with it.
    """
    file, out, log = toy.write(tmp_path, dataset.folder), tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "exact_titan.cli", "study", "run", str(file), "--out", str(out)]

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_for_a_step(folder: Path) -> None:
        _wait(lambda: (folder / "metrics.jsonl").exists() and read_records(folder, "train"), running, log)

    running = start()
    wait_for_a_step(out / "start/start-0")
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 75, log.read_text()
    assert not _processes(str(out))
    text = log.read_text()
    assert "stopped; the same command resumes the study: exact-titan study run" in text
    assert "Traceback" not in text
    assert (out / "start/start-0/exit_code").read_text() in ("75\n", "0\n")

    running = start()
    wait_for_a_step(out / "extension/standard/start-0-seed-0")
    running.kill()
    running.wait()
    _wait(lambda: not _processes(str(out)), None, log)
    assert not (out / "extension/exact/start-0-seed-1").exists()
    finished = times(out / "start")

    running = start()
    assert running.wait(240) == 0, log.read_text()
    assert times(out / "start") == finished
    ours, theirs = results(out), results(unbroken)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    hashes = [json.loads((folder / "proof.json").read_text())["starts"][0]["sha256"] for folder in (out, unbroken)]
    assert hashes[0] == hashes[1]
    assert report(out) == report(unbroken)


def _wait(condition, process: "subprocess.Popen[bytes] | None", log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def _processes(text: str) -> list[int]:
    """Return the processes with an open file below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(text) for file in files) and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found
