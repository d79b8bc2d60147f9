"""The table of several models in the layout of the paper's Table 1."""

import csv
from pathlib import Path

import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.reports.evaluation_table import write_table
from tests.reports.synthetic_evaluation import write_model, write_suite


def right(task: str, length: int | None) -> float:
    return 0.5


def row(text: str, name: str, metric: str) -> list[str]:
    """Return the cells of a row: two spaces or more part them."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}  ") and f" {metric}" in line)
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in ("a-standard", "b-exact"):
        folder = write_model(tmp_path / "models" / name)
        write_suite(folder, "ruler", ("x", "y"), [4096, 8192], right)
        write_suite(folder, "nolima", ("base",), [4096], right)
    return tmp_path


def test_a_group_has_its_differences_below_and_the_papers_figures_in_the_same_columns(out, capsys):
    assert main(["eval", "table", str(out), "--paper", "--out", str(out / "t")]) == 0
    text = capsys.readouterr().out
    header = text.splitlines()[0].split("  ")
    assert [one.strip() for one in header if one] == [
        *("model", "window", "metric", "NoLiMa trained", "NoLiMa extrapolated", "RULER trained", "RULER extrapolated")
    ]
    assert row(text, "b-exact", "accuracy")[1:3] == ["4,096", "accuracy, %"]
    difference = row(text, "b-exact - a-standard", "accuracy")
    assert difference[4] == "-"
    assert difference[3][0] in "+-"
    assert row(text, "b-exact - a-standard", "cross-entropy")[3][0] in "+-"
    assert row(text, "paper: Qwen2.5-0.5B, EXACT - standard (abstract)", "accuracy")[3:] == [
        *("+10.09", "+5.34", "+10.69", "+5.55")
    ]
    for note in (
        "RULER extrapolated: 2 tasks at 8,192 tokens (a-standard, b-exact).",
        "nolima: no extrapolated length has scores.",
        "rule is ours",
        "not in the file: Table 3, 5, 6",
    ):
        assert note in text
    assert {one.name for one in (out / "t").iterdir()} == {"table.md", "table.html", "table.csv"}
    rows = list(csv.DictReader((out / "t/table.csv").open()))
    assert {(one["baseline"], one["model"]) for one in rows} == {
        ("", "a-standard"),
        ("", "b-exact"),
        ("a-standard", "b-exact"),
    }


def test_models_of_another_window_or_other_prompts_have_rows_without_a_difference(out):
    other = write_model(out / "other", window=8192)
    write_suite(other, "ruler", ("x",), [4096, 8192], right)
    seeded = write_model(out / "seeded")
    write_suite(seeded, "ruler", ("x",), [4096], right, seed=1)
    text = write_table([out / "models/a-standard", other, seeded])
    assert " - a-standard  " not in text
    assert row(text, "other", "accuracy")[1] == "8,192"
    assert "seeded has no difference from a-standard" in text
    assert "seed: 0 / 1" in text
    assert "Lengths up to the window of 8192 tokens" in text


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [write_model(tmp_path / out / "models/m") for out in ("one", "two")]
    for folder in folders:
        write_suite(folder, "ruler", ("x",), [4096], right)
    text = write_table(folders)
    assert f"{folders[1]} - {folders[0]}" in text


def test_a_table_needs_scores_at_a_length(tmp_path):
    folder = write_model(tmp_path / "a")
    write_suite(folder, "qa", ("piqa",), [None], right)
    with pytest.raises(InputError, match="has no scores at a context length"):
        write_table([folder])
