"""Foreign names in reports: no format obeys them."""

from exact_titan.reports.pages import Heading, Items, Lines, Page, Table, Text, html_page, markdown, plain
from exact_titan.system.terminal import escape

NAME = 'x\x1b[2J\u202e<img src=x onerror="alert(1)">[a](javascript:b)|`'


def blocks() -> list:
    table = Table(["model", "a|b"], [[NAME, "1.0 [0.5, 1.5]"]])
    return [Heading(NAME), Text(f"the model {NAME}"), Items([NAME]), table]


def test_markdown_shows_a_foreign_name_as_text() -> None:
    text = markdown(blocks())
    assert text == escape(text)
    assert text.count("<img") == text.count("\\<img") == 4
    assert text.count("](") == 0
    assert "1.0 [0.5, 1.5]" in text
    assert "a\\|b" in text


def test_code_and_comparisons_in_markdown_stay() -> None:
    assert markdown([Text("`exact-titan <file>` and p < 0.05")]) == "`exact-titan <file>` and p < 0.05\n"


def test_lines_with_backticks_do_not_end_their_block() -> None:
    assert markdown([Lines(["a", "````", "b"])]) == "`````\na\n````\nb\n`````\n"
    assert markdown([Lines(["a"])]) == "```\na\n```\n"


def test_html_shows_a_foreign_name_as_text() -> None:
    text = html_page(blocks(), {})
    assert text == escape(text)
    assert "<img" not in text
    assert "&lt;img" in text


def test_a_table_on_the_terminal_and_a_csv_have_escapes() -> None:
    table = plain(Table(["model", "n"], [[NAME, "1"], ["y", "22"]]))
    assert table == escape(table)
    assert len({len(line) for line in table.splitlines()[1:]}) == 1
    page = Page()
    page.add_csv("a.csv", [{"model": NAME}])
    assert page.tables["a.csv"] == escape(page.tables["a.csv"])
