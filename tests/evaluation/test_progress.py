"""The estimate before a generation, and the time left."""

import pytest

from exact_titan.evaluation import progress
from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.progress import Progress, Work, estimate, works


def example(prompt: str, room: int = 10, **fields) -> Example:
    return Example("id", "words", "near", prompt, len(prompt), room, **fields)


def test_shared_beginnings_count_once():
    examples = [example("a" * 90 + "b" * 10), example("a" * 90 + "c" * 20), example("d" * 50, continuations=("efg",))]
    assert works(examples, chunk=1) == [Work(100, 0, 10), Work(20, 90, 10), Work(53, 0, 10)]
    assert works(examples, chunk=64) == [Work(100, 0, 10), Work(46, 64, 10), Work(53, 0, 10)]


def test_the_estimate_names_tokens_and_time():
    work = Work(120_000, 90_000, 20_000)
    assert estimate(work, 44, Speed(100.0, 10.0)) == (
        "44 examples, 120,000 tokens of prompts (90,000 more are shared), at most 20,000 generated tokens; "
        "at most 53:20 at 100 tokens/s of prompts and 10 generated tokens/s (measured)"
    )
    assert "the time is known after the first answers" in estimate(work, 44, None)


def test_the_time_left_follows_the_measured_work(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    shown = Progress([Work(1000, 0, 0), Work(3000, 0, 0)], Speed(100.0, 10.0))
    now[0] = 40.0
    shown.add(0)
    assert capsys.readouterr().err == "answers:  25 %, 1 of 2 examples, 0:40, 2:00 left\n"
    shown.add(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("speed", [None, Speed(1.0, 1.0)])
def test_no_work_divides_by_zero(speed, capsys):
    Progress([], speed).close()
    assert capsys.readouterr().err == ""
