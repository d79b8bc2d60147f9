"""The file of the paper's figures, and the regimes of the lengths."""

import pytest

from exact_titan.errors import InputError
from exact_titan.reports.evaluation_lengths import find_lengths
from exact_titan.reports.paper_values import FILE, paper_values


def test_the_file_has_the_figures_of_the_abstract_and_says_what_is_missing():
    paper = paper_values()
    assert [(row.model, row.values["ruler trained"]) for row in paper.of_table(1)] == [
        ("Qwen2.5-0.5B", 10.69),
        ("LLaMA-3.2-3B", 17.91),
    ]
    assert all(row.source and row.difference for row in paper.rows)
    assert paper.missing().endswith(
        "Table 1 has only the figures of: abstract; Table 2 has only the figures of: abstract; not in the file: "
        "Table 3, 5, 6"
    )


def test_the_rule_of_the_lengths_is_the_window():
    found = find_lengths("m", 8192, (), ())
    assert [found.regime(one) for one in (4096, 8192, 16384)] == ["trained", "trained", "extrapolated"]
    assert "rule is ours" in found.source


def test_a_window_that_the_paper_has_no_lengths_for_needs_stated_lengths():
    with pytest.raises(InputError, match=r"no lengths for a window of 2048 tokens \(m\), only for 4096, 8192, 16384"):
        find_lengths("m", 2048, (), ())
    with pytest.raises(InputError, match="window of m is not known"):
        find_lengths("m", None, (), ())
    with pytest.raises(InputError, match="both name the length 1024"):
        find_lengths("m", None, (1024,), (1024,))
    found = find_lengths("m", 2048, (1024, 2048), (4096,))
    assert [found.regime(one) for one in (1024, 2048, 4096, 8192)] == ["trained", "trained", "extrapolated", None]
    assert found.absent([1024, 4096, 8192]) == [2048]


def test_lengths_and_rows_are_added_by_hand_without_code(tmp_path):
    file = tmp_path / "paper.toml"
    added = '[[lengths]]\nwindow = 4096\ntrained = [2048, 4096]\nextrapolated = [8192]\nsource = "Table 1"\n'
    row = '[[rows]]\ntable = 3\nmodel = "m"\nrule = "exact"\ndifference = false\nsource = "Table 3"\n'
    file.write_text(FILE.read_text() + added + row + "[rows.values]\nx = 1\n")
    paper = paper_values(file)
    found = find_lengths("m", 4096, (), (), paper)
    assert [found.regime(one) for one in (1024, 4096, 8192, 16384)] == [None, "trained", "extrapolated", None]
    assert found.source == "The lengths are those of the paper (Table 1)."
    assert [row.values for row in paper.of_table(3)] == [{"x": 1}]
    assert paper.missing().endswith("Table 3 has only the figures of: Table 3; not in the file: Table 5, 6")
