"""The order, the resume and the stop of the runs of a study, with processes that train nothing."""

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exact_titan.runs.exit_codes import write_exit_code
from exact_titan.study import runner
from exact_titan.study.plan import Planned, plan
from exact_titan.study.spec import read_study
from tests.study import toy


@dataclass
class Fake:
    """A run that ends at the given number of looks, or with 75 after a signal."""

    one: Planned
    looks: float
    code: int = 0
    on_signal: int = 75
    signals: list[int] = field(default_factory=list)

    def poll(self) -> int | None:
        if self.signals and self.looks != float("-inf"):
            self.looks, self.code = float("-inf"), -9 if signal.SIGKILL in self.signals else self.on_signal
        self.looks -= 1
        if self.looks > 0:
            return None
        if self.code == 0:
            self.one.run.folder.mkdir(exist_ok=True)
            write_exit_code(self.one.run.folder, 0)
        return self.code

    def send_signal(self, sig: int, /) -> None:
        self.signals.append(sig)


class Fakes:
    """Starts runs that end after two looks, and counts them."""

    def __init__(self, make: Callable[[Planned, int], Fake] = lambda one, number: Fake(one, 2)) -> None:
        self.make, self.started, self.most = make, [], 0

    def __call__(self, one: Planned, log: Path) -> Fake:
        log.write_text("first line\nthe last line\n\n")
        self.started.append(self.make(one, len(self.started)))
        self.most = max(self.most, sum(fake.looks > 0 for fake in self.started))
        return self.started[-1]

    @property
    def names(self) -> list[str]:
        return [str(fake.one.run) for fake in self.started]


@pytest.fixture
def planned(tmp_path, monkeypatch) -> list[Planned]:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0.001)
    file = toy.write(tmp_path, Path("packed"))
    return plan(read_study(file), tmp_path / "out", where="study.toml")


def test_every_run_starts_after_its_start_and_pairs_follow_each_other(planned, capsys):
    fakes = Fakes()
    assert runner.train(planned, fakes, parallel=2) == 0
    assert fakes.names == [
        "start, start 0",
        "extension, arm standard, start 0, seed 0",
        "extension, arm exact, start 0, seed 0",
        "extension, arm standard, start 0, seed 1",
        "extension, arm exact, start 0, seed 1",
    ]
    assert fakes.most == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert all("left" in line for line in lines[:-1])


def test_finished_runs_are_never_started_again(planned, capsys):
    assert runner.train(planned, Fakes(), parallel=5) == 0
    (planned[2].run.folder / "exit_code").write_text("75\n")
    again = Fakes()
    assert runner.train(planned, again, parallel=5) == 0
    assert again.names == [str(planned[2].run)]
    assert "4 of 5 runs are finished\n[5/5] " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "exit_code", "how"),
    [(1, 1, "ended with exit code 1"), (65, 65, "with exit code 65"), (2, 2, "code 2"), (-9, 1, "killed by SIGKILL")],
)
def test_a_run_that_fails_stops_the_study(planned, capsys, code, exit_code, how):
    def make(one: Planned, number: int) -> Fake:
        return Fake(one, 5 if number == 1 else 2 if number == 0 else 1000, code if number == 1 else 0)

    fakes = Fakes(make)
    assert runner.train(planned, fakes, parallel=2) == exit_code
    assert len(fakes.started) == 3
    assert fakes.started[2].signals == [signal.SIGTERM]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"error: extension, arm standard, start 0, seed 0: .*{how}: the last line; ", line)
    assert line.endswith(f"{runner.log_file(planned[1])} has all output")


def test_a_run_that_was_stopped_by_itself_stops_the_study(planned, capsys):
    fakes = Fakes(lambda one, number: Fake(one, 3, 75 if number == 1 else 0))
    assert runner.train(planned, fakes, parallel=1) == 75
    assert len(fakes.started) == 2
    assert "seed 0: stopped, and saved" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_running_runs_save(planned, number):
    before = signal.getsignal(number)

    def make(one: Planned, place: int) -> Fake:
        if place == 2:
            os.kill(os.getpid(), number)
        return Fake(one, 2 if place == 0 else 1000)

    fakes = Fakes(make)
    assert runner.train(planned, fakes, parallel=2) == 75
    assert [fake.signals for fake in fakes.started[1:]] == [[signal.SIGTERM]] * 2
    assert len(fakes.started) == 3
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_kills_the_runs(planned, monkeypatch):
    monkeypatch.setattr(runner, "_REPEATED_SECONDS", 0.05)

    class Deaf(Fake):
        def send_signal(self, sig: int, /) -> None:
            if sig == signal.SIGKILL:
                super().send_signal(sig)
            else:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    def make(one: Planned, place: int) -> Fake:
        os.kill(os.getpid(), signal.SIGINT)
        return Deaf(one, 100_000)

    fakes = Fakes(make)
    assert runner.train(planned, fakes, parallel=1) == 130
    assert signal.SIGKILL in fakes.started[0].signals


def test_a_run_that_crashes_after_the_signal_is_named(planned, capsys):
    def make(one: Planned, place: int) -> Fake:
        os.kill(os.getpid(), signal.SIGTERM)
        return Fake(one, 1000, on_signal=1)

    assert runner.train(planned, Fakes(make), parallel=1) == 1
    assert "ended with exit code 1" in capsys.readouterr().err


def test_the_time_left_is_from_the_mean_of_the_stage(planned, monkeypatch):
    clock = itertools.count(step=10)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with runner.Progress(planned, 0, 2) as progress:
        assert progress.time_left() is None
        progress.waiting(planned[1:])
        progress.begins(planned[0])
        progress.ended(planned[0], finished=True)
        # Four runs of the other stage, two at a time, with the mean of all finished runs.
        (mean,) = progress._seconds["start"]
        assert progress.time_left() == 4 * mean / 2
