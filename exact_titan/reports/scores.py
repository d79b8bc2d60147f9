"""The table of `exact-titan eval score`: the means of one model by suite, context length and task."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from exact_titan.evaluation.scores import Metric, Score, ScoredSet, read_scores
from exact_titan.reports.pages import Table, plain


def score_table(files: Sequence[Path]) -> str:
    """Return the means of files of scores as text: one table for every suite, one row for every task and length.

    The row ``mean of tasks`` has the mean of the tasks of a prompt set. Every task counts the same. The last row,
    ``mean of sets``, has the mean of all prompt sets of the suite. Every set counts the same. ``n`` is the number of
    scored questions. A dash stands for a metric that no question of the task has.

    Args:
        files: files of scores of one model.

    Raises:
        InputError: if a file is not a file of scores.
    """
    suites: dict[str, list[ScoredSet]] = {}
    for file in files:
        read = read_scores(file)
        suites.setdefault(read.recipe.suite, []).append(read)
    return "\n\n".join(_suite_table(name, sets) for name, sets in suites.items())


def _suite_table(suite: str, sets: Sequence[ScoredSet]) -> str:
    metrics = list(dict.fromkeys(metric for one in sets for metric in one.metrics))
    rows: list[list[str]] = []
    of_sets: list[list[float | None]] = []
    for one in sorted(sets, key=lambda one: one.recipe.length or 0):
        length = "" if one.recipe.length is None else f"{one.recipe.length:,}"
        cells = {task: [score for score in one.scores if score.task == task] for task in one.recipe.tasks}
        means = {task: [_mean(scores, metric) for metric in metrics] for task, scores in cells.items()}
        for task, scores in cells.items():
            rows.append([task, length, f"{len(scores):,}", *map(_cell, means[task], metrics)])
        over_tasks = [_mean_of_all(column) for column in zip(*means.values(), strict=True)]
        of_sets.append(over_tasks)
        if len(cells) > 1:
            rows.append(["mean of tasks", length, f"{len(one.scores):,}", *map(_cell, over_tasks, metrics)])
    if len(sets) > 1:
        over_sets = [_mean_of_all(column) for column in zip(*of_sets, strict=True)]
        number = sum(len(one.scores) for one in sets)
        rows.append(["mean of sets", "", f"{number:,}", *map(_cell, over_sets, metrics)])
    return plain(Table([suite, "length", "n", *(metric.title for metric in metrics)], rows))


def _mean(scores: Sequence[Score], metric: Metric) -> float | None:
    values = [one.values[metric.name] for one in scores if metric.name in one.values]
    return fmean(values) if values else None


def _mean_of_all(means: Sequence[float | None]) -> float | None:
    known = [mean for mean in means if mean is not None]
    return fmean(known) if len(known) == len(means) else None


def _cell(value: float | None, metric: Metric) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if metric.percent else f"{value:.3f}"
