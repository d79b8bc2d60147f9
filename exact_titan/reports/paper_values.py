"""The paper's figures (EXACT, arXiv 2605.10544) from ``paper_values.toml``, each with its source."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from exact_titan.system.toml_file import read_toml_file

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper, as far as its figures are known.

    Attributes:
        table: number of the table.
        model: name of the model. Empty: the source does not name the model.
        rule: the rule, or ``A - B`` for a difference.
        difference: whether the values are differences, in points. Otherwise the values are percent.
        source: where the values stand in the paper.
        values: the value of every known column.
    """

    table: int
    model: str
    rule: str
    difference: bool
    source: str
    values: dict[str, float]


@dataclass(frozen=True)
class PaperLengths:
    """The lengths of Table 1 for a window, in tokens."""

    window: int
    trained: tuple[int, ...]
    extrapolated: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class PaperValues:
    """The content of the file.

    Attributes:
        paper: the paper.
        windows: windows of the training stages, in tokens.
        lengths: the lengths of Table 1, by window. A window can be missing.
        rows: the known rows.
        incomplete: every table of the paper with rows that are missing: its number, and its content if known.
    """

    paper: str
    windows: tuple[int, ...]
    lengths: dict[int, PaperLengths]
    rows: tuple[PaperRow, ...]
    incomplete: dict[int, str]

    def of_table(self, number: int) -> list[PaperRow]:
        """Return the known rows of a table."""
        return [row for row in self.rows if row.table == number]

    def missing(self) -> str:
        """Return one line about the tables that are not, or not wholly, in the file. Empty: all tables are there."""
        absent = [str(number) for number in self.incomplete if not self.of_table(number)]
        partly = [
            f"Table {number} has only the figures of: {', '.join(sorted({row.source for row in rows}))}"
            for number in self.incomplete
            if (rows := self.of_table(number))
        ]
        if absent:
            partly.append(f"not in the file: Table {', '.join(absent)}")
        return f"the paper's figures ({self.paper}, {FILE.name}): {'; '.join(partly)}" if partly else ""


@cache
def paper_values(file: Path = FILE) -> PaperValues:
    """Read the file."""
    tree: dict[str, Any] = read_toml_file(file)
    lengths = [
        PaperLengths(one["window"], tuple(one["trained"]), tuple(one["extrapolated"]), one["source"])
        for one in tree.get("lengths", [])
    ]
    return PaperValues(
        paper=tree["paper"],
        windows=tuple(tree["windows"]),
        lengths={one.window: one for one in lengths},
        rows=tuple(PaperRow(**row) for row in tree["rows"]),
        incomplete={one["number"]: one["content"] for one in tree["tables"] if not one["complete"]},
    )
