"""The processes of a study on a machine, and the command's own checks."""

import os
from pathlib import Path

import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.launch import background, configs
from exact_titan.study.plan import plan
from exact_titan.study.spec import Study, read_study
from exact_titan.study_machine import Machine, places, run_argv
from tests.study import toy


def study_of(folder: Path, changes: str) -> Study:
    return read_study(toy.write(folder, Path("packed"), ("parallel = 2", changes)))


@pytest.mark.parametrize(
    ("changes", "devices", "given", "expected"),
    [
        ("", 0, None, (3, [])),
        ("nproc = 2", 0, None, (1, [])),
        ("parallel = 2", 0, None, (2, [])),
        ("parallel = 9", 0, None, (5, [])),
        ("", 2, None, (2, ["0", "1"])),
        ("", 8, None, (5, ["0", "1", "2", "3", "4"])),
        ("nproc = 2", 4, "4,5,6,7", (2, ["4,5", "6,7"])),
        ("parallel = 4", 1, None, (4, ["0", "0", "0", "0"])),
        ("parallel = 3", 2, "6,7", (3, ["6", "7", "6"])),
    ],
)
def test_the_runs_divide_the_machine(tmp_path, monkeypatch, changes, devices, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert places(study_of(tmp_path, changes), runs=5, devices=devices) == expected


def test_a_run_with_more_processes_than_gpus(tmp_path):
    with pytest.raises(InputError, match="nproc is 4, but this machine has 2 GPUs"):
        places(study_of(tmp_path, "nproc = 4"), runs=5, devices=2)


def test_a_program_may_start_the_runs_itself(tmp_path, monkeypatch):
    """Every run gets its own GPU. After the end of a run, the next run gets the free GPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    class Ended:
        code: int | None = None

        def poll(self) -> int | None:
            return self.code

        def send_signal(self, sig: int, /) -> None: ...

    launched = []

    def launch(argv, log, environment):
        launched.append((argv, log, environment))
        return Ended()

    study = study_of(tmp_path, "parallel = 2")
    machine = Machine(study, "study.toml", launch=launch)
    machine._devices = 2
    runs = plan(study, tmp_path / "out", where="study.toml")
    start, parallel = machine.starter(runs)
    assert parallel == 2
    _, second = (start(one, tmp_path / "log") for one in runs[:2])
    second.code = 0
    start(runs[2], tmp_path / "log")
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in launched] == ["0", "1", "1"]
    assert {environment["OMP_NUM_THREADS"] for _, _, environment in launched} == {"4"}
    assert launched[1][0] == run_argv(runs[1], where="study.toml")
    assert f"--start_from={runs[0].run.folder}" in launched[1][0]
    assert "--loss.rule=standard" in launched[1][0]


def test_a_background_run_is_the_ordinary_command(tmp_path):
    process = background.start(["--config", "nonsense"], tmp_path / "log", {}, nproc=2)
    assert process.wait(60) == 2
    assert "exact-titan: error: --config is 'nonsense'" in (tmp_path / "log").read_text()
    assert os.getpgid(0) != process.pid


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "alpha = 0.5",
            'alpha = "high"',
            "study.toml, stage extension, arm exact: loss.alpha is 'high': it must be a number",
        ),
        (
            "alpha = 0.5",
            "alhpa = 1",
            "stage extension, arm exact: there is no key loss.alhpa: did you mean loss.alpha?",
        ),
        ('recipe = "from_scratch"', 'recipe = "from_scrach"', "did you mean from_scratch?"),
        ("seeds = [0, 1]", "", "seeds is missing"),
        ("alpha = 0.5", "alpha = 0.5\n[arms.exact.dataloader]\nseed = 3", "the arm exact sets dataloader.seed"),
    ],
)
def test_a_mistake_is_one_line_before_torch_is_loaded(tmp_path, monkeypatch, capsys, old, new, message):
    file = toy.write(tmp_path, Path("packed"), (old, new))
    monkeypatch.chdir(tmp_path)
    assert main(["study", "run", str(file), "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_a_study_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find_study("smollm2") == configs.STUDIES / "smollm2.toml"
    Path("smollm2.toml").touch()
    assert configs.find_study("smollm2") == Path("smollm2.toml")
    with pytest.raises(InputError, match="smolm2: there is no such file or shipped study; did you mean smollm2"):
        configs.find_study("smolm2")
