import sys

import pytest

from exact_titan.data import progress


def test_plain_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = progress.Progress()
    shown.add(3, 1000, 2_000_000)
    assert capsys.readouterr().err == "", "not before its time"
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    shown.add(2, 500, 1_000_000)
    shown.close()
    line = capsys.readouterr().err
    assert line.startswith("packing: 5 documents, 1,500 tokens, ")
    assert line.endswith(" tokens/s, 3.0 MB\n")


def test_one_moving_line_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = progress.Progress()
    shown.add(3, 1000, 2_000_000)
    shown.close()
    text = capsys.readouterr().err
    assert "3 documents" in text
    assert "1,000 tokens" in text
    assert text.count("\n") == 1
