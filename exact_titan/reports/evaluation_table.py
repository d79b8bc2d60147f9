"""Several models in the layout of the paper's Table 1: a model a row, trained and extrapolated lengths as columns.

Models with the same tokenizer and window form a group. The first model of a group is the baseline of the others: the
row below another model has its paired difference from the baseline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.reports.evaluation_comparison import Estimate
from exact_titan.reports.evaluation_lengths import REGIMES, find_lengths
from exact_titan.reports.evaluation_results import Results, results_of
from exact_titan.reports.evaluation_scores import ScoredModel, expand, read_models, shared_cells
from exact_titan.reports.evaluation_sections import CONDITIONAL, paper_cells
from exact_titan.reports.evaluation_text import estimate_rows, shown_difference, shown_lengths, shown_own
from exact_titan.reports.pages import Heading, Items, Page, Table, Text, plain, write_page
from exact_titan.reports.paper_values import paper_values

_TITLES = {"nolima": "NoLiMa", "ruler": "RULER"}
"""Suites of the paper's Table 1 in its order, with their names. Other suites follow."""


_METRICS = {"accuracy": "accuracy, %", "cross_entropy": "cross-entropy, nats/token"}
"""Metrics of the rows, with their names."""


@dataclass
class _Rows:
    """The table under construction.

    Attributes:
        cells: label cells and cells by column of every row.
        csv: rows of the CSV.
        notes: sentences below the table, each once.
        lengths: names of the models by a sentence about the lengths of a column.
    """

    cells: list[tuple[list[str], dict[str, str]]] = field(default_factory=list)
    csv: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    lengths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, window: str, results: Results, place: int, *, difference: bool) -> None:
        """Add a row for the accuracy and a row for the cross-entropy of the suites with lengths."""
        for metric, title in _METRICS.items():
            found = [one for one in results.long if one.scope == "macro" and one.metric.name == metric]
            row = {_column(one): _cell(one, place, difference) for one in found}
            self.cells.append(([name, window, title], row))


def write_table(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    trained: Sequence[int] = (),
    extrapolated: Sequence[int] = (),
    paper: bool = False,
) -> str:
    """Return the table of several models, and write it if ``out`` is given.

    Args:
        folders: folders of models, or folders of evaluations, which mean all their models.
        out: folder of ``table.md``, ``table.html`` and ``table.csv``. None: no files.
        trained, extrapolated: the lengths of each regime in tokens. Both empty: the lengths for the window of each
            model.
        paper: whether to add the paper's figures as rows.

    Raises:
        InputError: if a folder is no folder of a model or has no scores, if no model has scores at a length, or if the
            lengths of a window are not known.
    """
    rows = _Rows()
    for group in _groups(read_models(expand(folders))):
        for place, model in enumerate(group):
            _add_model(rows, model, None if place == 0 else group[0], trained, extrapolated)
    if not rows.cells:
        raise InputError(f"{folders[0]} has no scores at a context length: evaluate with --suites ruler or nolima")
    columns = _columns(rows)
    listed = [[*labels, *(cells.get(name, "-") for name in columns)] for labels, cells in rows.cells]
    if paper:
        values = paper_values()
        for row in values.of_table(1):
            kind = "accuracy, points" if row.difference else "accuracy, %"
            name = f"paper: {row.model}, {row.rule} ({row.source})"
            listed.append([name, "-", kind, *paper_cells(row, columns)])
        rows.notes[values.missing()] = None
    titles = [f"{_TITLES.get(suite, suite)} {regime}" for suite, regime in (one.split() for one in columns)]
    table = Table(["model", "window", "metric", *titles], listed, labels=3)
    covered = [f"{text} ({', '.join(names)})." for text, names in rows.lengths.items()]
    notes = [f"{CONDITIONAL} Brackets: 95 % interval.", *covered, *rows.notes]
    text = "\n".join([plain(table), "", *notes])
    if out is not None:
        page = Page([Heading("Trained and extrapolated lengths", 1), table, Text(notes[0]), Items(notes[1:])])
        page.add_csv("table.csv", rows.csv)
        write_page(page, out, set(), "table")
        text += f"\ntable: {out / 'table.html'}"
    return text


def _groups(models: Sequence[ScoredModel]) -> list[list[ScoredModel]]:
    groups: dict[tuple[str, int | None], list[ScoredModel]] = {}
    for one in models:
        groups.setdefault((one.model.tokenizer_sha256, one.model.window), []).append(one)
    return list(groups.values())


def _add_model(
    rows: _Rows,
    model: ScoredModel,
    baseline: ScoredModel | None,
    trained: Sequence[int],
    extrapolated: Sequence[int],
) -> None:
    """Add the row of a model, and the row of its difference from the baseline if the prompts are the same."""
    lengths = find_lengths(model.name, model.model.window, trained, extrapolated)
    window = "unknown" if model.model.window is None else f"{model.model.window:,}"
    alone = results_of(shared_cells([model]), lambda: lengths)
    if not alone.long:
        rows.notes[f"{model.name} has no scores at a context length."] = None
        return
    rows.notes[lengths.source] = None
    for text in _lengths_of(alone):
        rows.lengths.setdefault(text, []).append(model.name)
    rows.notes.update(dict.fromkeys(alone.left_out))
    rows.add(model.name, window, alone, 0, difference=False)
    rows.csv += _csv(alone, "")
    if baseline is None:
        return
    try:
        both = results_of(shared_cells([baseline, model]), lambda: lengths)
    except InputError as error:
        rows.notes[f"{model.name} has no difference from {baseline.name}: {error}"] = None
        return
    rows.notes.update(dict.fromkeys([*(f"NOT ALIKE: {one}" for one in both.shared.unlike), *both.left_out]))
    rows.add(f"{model.name} - {baseline.name}", window, both, 1, difference=True)
    rows.csv += [row for row in _csv(both, baseline.name) if row["model"] == model.name]


def _csv(results: Results, baseline: str) -> Iterator[dict[str, Any]]:
    macro = [one for one in results.long if one.scope == "macro"]
    return ({"baseline": baseline, **row} for row in estimate_rows(macro, results.names))


def _lengths_of(results: Results) -> Iterator[str]:
    """Yield a sentence for the accuracy of every column."""
    for one in results.long:
        if one.scope == "macro" and one.metric.name == "accuracy":
            title = f"{_TITLES.get(one.suite, one.suite)} {one.regime}"
            yield f"{title}: {len(one.tasks)} tasks at {shown_lengths(one.lengths)} tokens"


def _columns(rows: _Rows) -> list[str]:
    suites = list(dict.fromkeys(name.split()[0] for _, cells in rows.cells for name in cells))
    ordered = [one for one in _TITLES if one in suites] + [one for one in suites if one not in _TITLES]
    return [f"{suite} {regime}" for suite in ordered for regime in REGIMES]


def _column(one: Estimate) -> str:
    return f"{one.suite} {one.regime}"


def _cell(one: Estimate, place: int, difference: bool) -> str:
    found = one.difference[place] if difference else one.own[place]
    assert found is not None  # the baseline has no row of differences
    return shown_difference(found, one.metric) if difference else shown_own(found, one.metric)
