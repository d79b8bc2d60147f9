import sys
from pathlib import Path

import pytest

from exact_titan.packing import progress
from exact_titan.packing.progress import Progress, ProgressCounts, Tally, clock, read_tallies


def test_tallies_of_several_tasks_add_up(tmp_path: Path) -> None:
    one, other = Tally(tmp_path), Tally(tmp_path)
    one.add(3, 1000, 4000, 500.0)
    one.finish_part(2000)
    one.add(1, 10, 40, 7.0)
    one.flush()
    other.add(2, 500, 2000, 250.0)
    other.flush()
    assert read_tallies(tmp_path) == ProgressCounts(documents=6, tokens=1510, text_bytes=6040, read=2257.0)


def test_plain_lines_in_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Tally(tmp_path).add(2, 500, 0, 250.0)
    clocks = iter([100.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clocks))
    shown = Progress(tmp_path, 1500, ProgressCounts(documents=1, tokens=100, read=500.0))
    shown._show()
    # 250 bytes take 10 s, so the other 750 bytes take 30 s. Earlier work does not count in the speed.
    assert capsys.readouterr().err == "packing:  50 %, 3 documents, 600 tokens, 50 tokens/s, 0:30 left\n"


def test_one_moving_line_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Tally(tmp_path).add(3, 1000, 0, 400.0)
    with Progress(tmp_path, 1000, ProgressCounts()):
        pass
    text = capsys.readouterr().err
    assert "packing:  40%|" in text
    assert "3 documents, 1,000 tokens, " in text
    assert text.rstrip("\n").endswith(" left")
    assert text.count("\n") == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (90061, "25:01:01")])
def test_time_left(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
