"""The sections of an evaluation's report."""

from collections.abc import Iterator, Sequence

from exact_titan.reports import evaluation_figures as figures
from exact_titan.reports.evaluation_comparison import Estimate
from exact_titan.reports.evaluation_differences import engine_of
from exact_titan.reports.evaluation_results import Results
from exact_titan.reports.evaluation_scores import ScoredModel
from exact_titan.reports.evaluation_text import estimate_rows, estimate_table, shown_lengths
from exact_titan.reports.pages import Heading, Items, Page, Table, Text
from exact_titan.reports.paper_values import PaperRow, PaperValues

FILES = {
    *("lengths.png", "lift.png", "margin_map.png", "margin_distance.png"),
    *("estimates.csv", "lift.csv"),
}
"""All pictures and tables that a report may have."""

CONDITIONAL = (
    "The 95 % intervals are conditional on these checkpoints and prompts: the noise of the training is not in them."
)

_READING = (
    "A value is the macro average: first over the tasks of a length, then over the lengths. Every task and every "
    "length counts the same.",
    "n: number of questions that all models have. A difference is paired: both models answer the same questions.",
    "Brackets: 95 % bootstrap-t interval. A resample draws the questions within every cell (task and length). "
    "Questions about one context stay together. Accuracies have pseudo-questions (four for a score, two for a "
    "difference), so that equal answers to a few questions do not give an interval of width 0. A value without "
    "brackets has no interval: its questions are too few, or their values are equal.",
    "Accuracies are percent, and their differences are points. Cross-entropies and margins are nats. A negative "
    "difference of a cross-entropy is better.",
    "The intervals are descriptive and not corrected for their number: about one of 20 excludes 0 by chance.",
)


def subtitle(results: Results) -> str:
    """Return the models in one line."""
    first, *others = results.names
    return f"evaluation of {first}" if not others else f"evaluation: {', '.join(others)} against {first}"


def warnings(results: Results) -> Iterator[str]:
    """Yield a sentence for every setting that the models do not share."""
    for text in results.shared.unlike:
        yield f"NOT ALIKE: {text}"


def add_head(page: Page, results: Results) -> None:
    """Add the title, what the models do not share, and how to read the numbers."""
    title = subtitle(results)
    page.add(Heading(title[:1].upper() + title[1:], 1))
    page.add(*(Text(one) for one in warnings(results)))
    page.add(Text(CONDITIONAL), Items(_READING))


def macro_table(results: Results) -> Table | None:
    """Return the table of the trained and the extrapolated lengths. None: no suite has lengths."""
    found = [one for one in results.long if one.scope == "macro"]
    return _table(found, results, suite=True, tasks=True, regime=True, lengths=True) if found else None


def short_table(results: Results) -> Table | None:
    """Return the macro averages of the suites without lengths. None: there is no such suite."""
    found = [one for one in results.short if one.scope == "macro"]
    return _table(found, results, suite=True, tasks=True) if found else None


def probe_table(results: Results, *, longest: bool = False) -> Table | None:
    """Return the context margins by length and distance. None: there is no probe.

    Args:
        results: the estimates.
        longest: whether the table has the longest context only.
    """
    most = max((one.lengths[0] for one in results.probe), default=0)
    found = [one for one in results.probe if not longest or one.lengths[0] == most]
    return _table(found, results, lengths=True, distance=True) if found else None


def add_long(page: Page, results: Results) -> None:
    """Add the suites with lengths: the regimes, every length, every task, and the relative lift (Figure 4)."""
    table = macro_table(results)
    if table is None or results.lengths is None:
        return
    page.add(Heading("Trained and extrapolated lengths"), Text(results.lengths.source), table)
    by_length = [one for one in results.long if one.scope == "length"]
    page.add_picture(
        "lengths.png",
        figures.lengths_figure(by_length, results.names, results.lengths),
        "Scores by context length. The bars are the 95 % intervals of every model alone; the intervals of the paired "
        "differences are in the tables.",
    )
    if any(one.lift for one in results.lifts):
        page.add_picture(
            "lift.png",
            figures.lift_figure(results.lifts, results.names[0], results.lengths),
            f"Relative lift of the accuracy over {results.names[0]} by context length, with 95 % intervals of the "
            f"paired ratio (Figure 4 of the paper).",
        )
        page.add_csv(
            "lift.csv",
            [
                {
                    "suite": one.suite,
                    "model": one.model,
                    "length": one.length,
                    "lift": one.lift and one.lift.value,
                    "low": one.lift and one.lift.low,
                    "high": one.lift and one.lift.high,
                }
                for one in results.lifts
            ],
        )
    for one in results.lifts:
        if one.lift is None:
            page.add(Text(f"{one.suite} at {one.length:,}: {results.names[0]} scores 0, so {one.model} has no lift."))
    for suite in dict.fromkeys(one.suite for one in results.long):
        of_suite = [one for one in results.long if one.suite == suite]
        lengths = [one for one in of_suite if one.scope == "length"]
        page.add(Heading(f"{suite} by length", 3), _table(lengths, results, regime=True, lengths=True))
        tasks = [one for one in of_suite if one.scope == "task"]
        page.add(Heading(f"{suite} by task", 3), _table(tasks, results, tasks=True, regime=True))


def add_probe(page: Page, results: Results) -> None:
    """Add the evidence probe: the map (Figure 3) and the margin by distance (Figure 5)."""
    table = probe_table(results)
    if table is None:
        return
    page.add(
        Heading("Evidence probe"),
        Text(
            "The margin of a question is the log-likelihood of the right answer minus that of the best other answer. "
            "The context margin is the margin with the evidence minus the margin with the distractor in its place. A "
            "model that ignores the context has the context margin 0."
        ),
    )
    page.add_picture(
        "margin_map.png",
        figures.margin_map_figure(results.probe, results.names),
        "Context margin over evidence distance and context length, in nats (Figure 3 of the paper). An empty cell has "
        "no questions.",
    )
    page.add_picture(
        "margin_distance.png",
        figures.margin_distance_figure(results.probe, results.names),
        "Context margin by evidence distance, one panel a context length, with 95 % intervals (Figure 5 of the paper).",
    )
    page.add(table)


def add_short(page: Page, results: Results) -> None:
    """Add the suites without lengths: every task and the macro change (Table 2)."""
    for suite in dict.fromkeys(one.suite for one in results.short):
        rows = [one for one in results.short if one.suite == suite]
        metrics = list(dict.fromkeys(one.metric for one in rows))
        rows.sort(key=lambda one: (metrics.index(one.metric), one.scope == "macro"))
        page.add(
            Heading(f"Preservation: {suite}"),
            Text("The macro average over the tasks is the last row of every metric (Table 2 of the paper)."),
            _table(rows, results, tasks=True),
        )


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """Return the paper's figures, one row of the paper a row."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    return Table(
        ["paper", "model", "rule", "source", *columns],
        [
            [f"Table {row.table}", row.model or "(not named)", row.rule, row.source, *paper_cells(row, columns)]
            for row in rows
        ],
        labels=4,
    )


def paper_cells(row: PaperRow, columns: Sequence[str]) -> list[str]:
    """Return the values of a row of the paper in these columns."""
    sign = "+" if row.difference else ""
    return [f"{row.values[name]:{sign}.2f}" if name in row.values else "-" for name in columns]


def add_paper(page: Page, paper: PaperValues) -> None:
    """Add the paper's figures, and which tables are missing."""
    page.add(Heading("The paper's figures"), paper_table(paper.rows), Text(paper.missing()))


def add_settings(page: Page, results: Results) -> None:
    """Add the models, the engines and the prompts."""
    rows = [_model_row(one) for one in results.shared.models]
    header = ["model", "source", "step", "window", "positions", "weights", "engine"]
    page.add(Heading("Models"), Table(header, rows, labels=len(header)))
    header = ["suite", "length", "version", "examples", "seed", "template", "tokenizer", "settings"]
    page.add(
        Heading("Prompts"),
        Table(
            header,
            [
                [
                    one.suite,
                    "-" if one.length is None else f"{one.length:,}",
                    str(one.version),
                    f"{one.examples:,}",
                    str(one.seed),
                    one.template,
                    one.tokenizer_sha256[:12],
                    "\n".join(f"{name}: {_cut(value)}" for name, value in one.settings.items()) or "-",
                ]
                for one in results.shared.recipes
            ],
            labels=len(header),
        ),
        Items([f"{suite}: {note}" for suite, notes in results.shared.notes.items() for note in notes]),
    )


def add_left_out(page: Page, results: Results) -> None:
    """Add everything that the report does not contain."""
    page.add(Heading("Left out"), Items(results.left_out) if results.left_out else Text("Nothing."))


def add_numbers(page: Page, results: Results) -> None:
    """Add the CSV file of all estimates."""
    everything = [*results.long, *results.probe, *results.short]
    page.add_csv("estimates.csv", estimate_rows(everything, results.names))
    page.add(Text("estimates.csv has all numbers with all digits, also for every cell (a task at a length)."))


def _table(
    estimates: Sequence[Estimate],
    results: Results,
    *,
    suite: bool = False,
    tasks: bool = False,
    regime: bool = False,
    lengths: bool = False,
    distance: bool = False,
) -> Table:
    """Return a table of estimates with the named label columns."""
    labels = {}
    if suite:
        labels["suite"] = lambda one: one.suite
    if tasks:
        labels["task"] = lambda one: one.tasks[0] if one.scope == "task" else _macro(len(one.tasks))
    if regime:
        labels["lengths are"] = lambda one: one.regime or "-"
    if lengths:
        labels["length"] = lambda one: shown_lengths(one.lengths)
    if distance:
        labels["distance"] = lambda one: f"{one.distance:,}"
    labels["metric"] = lambda one: one.metric.title
    return estimate_table(estimates, results.names, labels)


def _macro(tasks: int) -> str:
    return f"macro of {tasks} tasks" if tasks > 1 else "1 task"


def _model_row(one: ScoredModel) -> list[str]:
    model = one.model
    engines = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in engine_of(scored).items()) for scored in one.sets.values()
    )
    window, positions = ("unknown" if value is None else f"{value:,}" for value in (model.window, model.positions))
    step = "-" if model.step is None else f"{model.step:,}"
    return [one.name, model.source, step, window, positions, model.weights[:12], "\n".join(engines)]


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
