"""The report of an evaluation: ``report.md``, ``report.html``, pictures, and a CSV of every number.

1. :func:`read_models` and :func:`shared_cells` (:mod:`evaluation_scores`) pair the questions of the models.
2. :mod:`evaluation_comparison` averages the cells, with intervals over the questions.
3. The sections of the page (:mod:`evaluation_sections`) show the averages.

The files depend on the scores only, and not on the time.
"""

from collections.abc import Sequence
from pathlib import Path

from exact_titan.reports import evaluation_sections as sections
from exact_titan.reports.evaluation_lengths import common_lengths
from exact_titan.reports.evaluation_results import Results, results_of
from exact_titan.reports.evaluation_scores import expand, read_models, shared_cells
from exact_titan.reports.pages import Page, plain, write_page
from exact_titan.reports.paper_values import paper_values

FOLDER = "report"


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    trained: Sequence[int] = (),
    extrapolated: Sequence[int] = (),
    paper: bool = False,
) -> str:
    """Write the report of one model, or of several models against the first.

    Args:
        folders: folders of models, OUT/models/NAME. A folder OUT means all its models. The first model is
            the baseline.
        out: folder of the report. None: OUT/report of the first model.
        trained, extrapolated: the lengths of each regime in tokens. Both empty: the lengths for the window of the
            models.
        paper: whether to show the paper's figures too.

    Returns:
        The main tables, and the path of the report, for the terminal.

    Raises:
        InputError: if a folder is no folder of a model or has no scores, if the models have scores of other prompts, if
            the lengths of the window are not known, or if the report cannot be written.
    """
    shared = shared_cells(read_models(expand(folders)))
    results = results_of(shared, lambda: common_lengths([one.model for one in shared.models], trained, extrapolated))
    folder = out or shared.models[0].folder.resolve().parent.parent / FOLDER
    page = Page()
    sections.add_head(page, results)
    sections.add_long(page, results)
    sections.add_probe(page, results)
    sections.add_short(page, results)
    if paper:
        sections.add_paper(page, paper_values())
    sections.add_settings(page, results)
    sections.add_left_out(page, results)
    sections.add_numbers(page, results)
    write_page(page, folder, sections.FILES)
    return "\n".join([*_terminal(results, paper), f"report: {folder / 'report.html'}"])


def _terminal(results: Results, paper: bool) -> list[str]:
    lines = [sections.subtitle(results), *sections.warnings(results), ""]
    tables = [
        sections.macro_table(results),
        sections.probe_table(results, longest=True),
        sections.short_table(results),
    ]
    for table in tables:
        if table is not None:
            lines += [plain(table), ""]
    if paper:
        lines += [plain(sections.paper_table(paper_values().rows)), paper_values().missing(), ""]
    lines += [f"{sections.CONDITIONAL} n: questions that all models have."]
    if results.left_out:
        more = len(results.left_out) - 1
        lines.append(f"left out: {results.left_out[0]}" + (f" The report has {more} more such notes." if more else ""))
    return lines
