"""A report as Markdown and as one HTML file with its pictures inside, from the same blocks.

The texts may contain foreign names: of models, of datasets, of arms. Every format shows the names as text. Control
characters and bidirectional marks become visible escapes (:mod:`exact_titan.system.terminal`). Markdown and HTML in a
name have no effect.
"""

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_titan.errors import InputError
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.terminal import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 0.6em; }
h1 { margin-top: 0; }
p, ul { max-width: 46rem; }
pre { background: #f4f4f4; padding: 0.8em 1em; overflow-x: auto; font-size: 0.8rem; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.8em; text-align: right; white-space: pre; vertical-align: top; }
tr { border-bottom: 1px solid #ccc; }
th { border-bottom: 2px solid #111; vertical-align: bottom; white-space: normal; }
.label { text-align: left; }
figure { margin: 1.5em 0; }
figcaption { max-width: 46rem; }
img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading. Level 1 is the title of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list, one sentence or two an item."""

    items: Sequence[str]


@dataclass(frozen=True)
class Lines:
    """Lines with their indentation, as a terminal shows them."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        header: names of the columns.
        rows: cells as text. A cell may have two lines.
        labels: number of the first columns that have names. The other columns have numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture with its caption. ``file`` is the name of a PNG in the folder of the report."""

    file: str
    caption: str


Block = Heading | Text | Items | Lines | Table | Picture


@dataclass
class Page:
    """A page under construction.

    Attributes:
        blocks: the page from top to bottom.
        pictures: the bytes of every PNG by its file name.
        tables: the text of every CSV by its file name.
    """

    blocks: list[Block] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def add(self, *blocks: Block) -> None:
        self.blocks.extend(blocks)

    def add_picture(self, file: str, figure: "Figure", caption: str) -> None:
        """Draw a figure at this place of the page."""
        data = io.BytesIO()
        figure.savefig(data, format="png")
        self.pictures[file] = data.getvalue()
        self.add(Picture(file, caption))

    def add_csv(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add a CSV file. All rows have the keys of the first row."""
        listed = list(rows)
        out = io.StringIO()
        writer = csv.DictWriter(out, list(listed[0]) if listed else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
        self.tables[file] = escape(out.getvalue())


def markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown. Pictures are links to their files."""
    return escape("\n\n".join(_markdown(block) for block in blocks) + "\n")


def html_page(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """Return the page as one HTML document. ``pictures`` has the bytes of every PNG by its file name."""
    title = html.escape(next(block.text for block in blocks if isinstance(block, Heading)))
    body = "\n".join(_html(block, pictures) for block in blocks)
    return escape(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(page: Page, folder: Path, possible: Set[str], name: str = "report") -> None:
    """Write ``NAME.md``, ``NAME.html``, the pictures and the tables of a page.

    The function removes the pictures and tables that only an earlier page has.

    Args:
        page: the page.
        folder: folder of the report. The function makes the folder.
        possible: names of all pictures and tables that a page of this kind may have.
        name: name of the page's files.

    Raises:
        InputError: if the files cannot be written.
    """
    files = {
        f"{name}.md": markdown(page.blocks).encode(),
        f"{name}.html": html_page(page.blocks, page.pictures).encode(),
        **page.pictures,
        **{name: text.encode() for name, text in page.tables.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unused in possible - files.keys():
            (folder / unused).unlink(missing_ok=True)
        for file, content in files.items():
            write_atomically(folder / file, content)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}: make room, or change its permissions"
        ) from None


def plain(table: Table) -> str:
    """Return a table for the terminal."""
    cells = [[escape(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < table.labels else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_inert(text)}"
        case Text(text):
            return _inert(text)
        case Items(items):
            return "\n".join(f"- {_inert(item)}" for item in items)
        case Lines(lines):
            # A line of backticks inside must not end the block.
            runs = [len(run) for line in lines for run in re.findall("`{3,}", line)]
            fence = "`" * (max(runs, default=2) + 1)
            return "\n".join([fence, *lines, fence])
        case Picture(file, caption):
            return f"![{file}]({file})\n\n{_inert(caption)}"
        case Table(header, rows, labels):
            rule = ["---" if place < labels else "---:" for place in range(len(header))]
            escaped = [
                [_inert(cell).replace("|", "\\|").replace("\n", "<br>") for cell in row]
                for row in (header, rule, *rows)
            ]
            return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _inert(text: str) -> str:
    """Return text as Markdown in which HTML tags, links and pictures have no effect. Code in backticks stays."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = (re.sub(r"<(?=[A-Za-z/!?])|(?<=\])(?=\()", r"\\\g<0>", part) for part in parts[::2])
    return "".join(parts)


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{_text(text)}</p>"
        case Items(items):
            return "<ul>\n" + "\n".join(f"<li>{_text(item)}</li>" for item in items) + "\n</ul>"
        case Lines(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Picture(file, caption):
            data = base64.b64encode(pictures[file]).decode()
            alternative = html.escape(caption)
            picture = f'<img src="data:image/png;base64,{data}" alt="{alternative}">'
            return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"
        case Table(header, rows, labels):

            def row(cells: Sequence[str], tag: str) -> str:
                marks = [' class="label"' if place < labels else "" for place in range(len(cells))]
                inside = "".join(
                    f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
                )
                return f"<tr>{inside}</tr>"

            lines = [f"<thead>{row(header, 'th')}</thead>", "<tbody>", *(row(one, "td") for one in rows), "</tbody>"]
            return '<div class="table"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _text(text: str) -> str:
    """Return a sentence as HTML: code in backticks, and no line break before a percent sign."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"(\d) %", "\\1\u00a0%", html.escape(text)))
