"""The report of a study: ``<folder>/report/report.md``, ``report.html``, pictures, and a CSV of every number.

1. :func:`read_pairs` reads the results of the study.
2. The sections of the page (:mod:`study_sections`) answer two questions with two statistics: is the rule better, over
   pairs of runs, and do two checkpoints differ, over the documents of a validation.
3. :func:`write_report` writes the files. The files depend on the results only, and not on the time.
"""

from pathlib import Path

from exact_titan.reports import study_sections, study_tables
from exact_titan.reports.pages import Page, plain, write_page
from exact_titan.study.comparisons import read_pairs
from exact_titan.study.results import read_results

FOLDER = "report"


def write_report(folder: Path) -> str:
    """Write the report of a study.

    Args:
        folder: folder of the study. The study may still train: the report has the complete pairs.

    Returns:
        The tables of the primary outcome and of all outcomes, and the path of the report, for the terminal.

    Raises:
        InputError: if the folder is not the folder of a study, if no pair is complete, if a file of a run is missing or
            damaged, or if the report cannot be written.
    """
    pairs = read_pairs(read_results(folder))
    primary = study_sections.primary_comparisons(pairs)
    comparisons = study_sections.all_comparisons(pairs)
    page = Page()
    study_sections.add_head(page, pairs, folder)
    study_sections.add_primary(page, pairs, primary)
    study_sections.add_outcomes(page, pairs, comparisons)
    study_sections.add_figures(page, pairs, comparisons)
    study_sections.add_validations(page, pairs, comparisons)
    study_sections.add_checkpoints(page, pairs)
    write_page(page, folder / FOLDER, study_sections.FILES)
    tested = [one for one in comparisons if (one.step, one.weights) == (pairs.final_step, pairs.weights[0])]
    return "\n".join(
        [
            study_sections.subtitle(pairs),
            plain(study_tables.primary_table(primary)),
            *study_tables.sentences(primary, pairs.primary),
            "",
            "all outcomes, in nats; ± is half of the 95 % interval over pairs; only the primary outcome is a test",
            plain(study_tables.differences_table(pairs, tested)),
            "",
            *study_sections.warnings(pairs, folder),
            f"report: {folder / FOLDER / 'report.html'}",
        ]
    )
