"""The scores of several models on the same prompts, cell by cell.

1. :func:`read_models` reads the folders of the models.
2. :func:`shared_cells` finds the cells (suite, task, length) that all models have, checks that the prompts are the
   same, and pairs the questions by their ids.

Everything that is left out is counted, and named in a note.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from exact_titan.errors import InputError
from exact_titan.evaluation.model_folder import MODELS_FOLDER, EvaluatedModel, read_model
from exact_titan.evaluation.prompt_sets import PromptRecipe
from exact_titan.evaluation.scores import SCORES_FOLDER, Metric, Score, ScoredSet, read_scores
from exact_titan.reports.evaluation_differences import differences, engine_of, unlike_recipes

CellKey = tuple[str, str, int | None]
"""Suite, task and length of a cell."""


@dataclass(frozen=True)
class ScoredModel:
    """A model with its scores.

    Attributes:
        name: name in tables, different for every model of a report.
        folder: the folder of the model.
        model: the record of the folder.
        sets: the sets of scores, by the name of their file.
    """

    name: str
    folder: Path
    model: EvaluatedModel
    sets: dict[str, ScoredSet]


@dataclass(frozen=True)
class Cell:
    """The questions of a cell that all models have.

    Attributes:
        key: suite, task and length.
        metrics: the metrics of the suite.
        ids: id of every question.
        values: for every metric the values of the questions, float64 ``[models, questions]``. NaN: a model has no
            value.
        distance: distance of every question in tokens, int64 ``[questions]``. -1: no single evidence.
        unit: unit of every question, int64 ``[questions]``. Questions of one unit depend on each other.
        part: nominal distance of a part of a cell. None: the whole cell.
    """

    key: CellKey
    metrics: tuple[Metric, ...]
    ids: tuple[str, ...]
    values: dict[str, np.ndarray]
    distance: np.ndarray
    unit: np.ndarray
    part: int | None = None

    def by_distance(self) -> "dict[int, Cell]":
        """Return the questions by nominal distance: the nearest power of two, in tokens."""
        known = self.distance >= 1
        nominal = np.zeros_like(self.distance)
        nominal[known] = 2 ** np.rint(np.log2(self.distance[known])).astype(np.int64)
        return {int(one): self._part(nominal == one, int(one)) for one in np.unique(nominal[known])}

    def _part(self, chosen: np.ndarray, distance: int) -> "Cell":
        return Cell(
            self.key,
            self.metrics,
            tuple(one for one, here in zip(self.ids, chosen, strict=True) if here),
            {name: values[:, chosen] for name, values in self.values.items()},
            self.distance[chosen],
            self.unit[chosen],
            distance,
        )


@dataclass(frozen=True)
class SharedCells:
    """The cells that all models of a report have.

    Attributes:
        models: the models. The first model is the baseline.
        cells: the cells, in the order of the suites, lengths and tasks.
        recipes: the recipes of the prompts, one a suite and length, of the first model.
        notes: sentences of the prompt sets, by suite.
        left_out: a sentence for everything that the cells do not contain.
        unlike: a sentence for every setting of the engines that differs between the models.
    """

    models: tuple[ScoredModel, ...]
    cells: tuple[Cell, ...]
    recipes: tuple[PromptRecipe, ...]
    notes: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    unlike: tuple[str, ...]

    def suites(self) -> Iterator[tuple[str, tuple[Metric, ...], list[Cell]]]:
        """Yield name, metrics and cells of every suite."""
        for suite, cells in groupby(self.cells, key=lambda cell: cell.key[0]):
            listed = list(cells)
            yield suite, listed[0].metrics, listed


def read_models(folders: Sequence[Path]) -> list[ScoredModel]:
    """Read the models of an evaluation.

    Args:
        folders: folders of models, OUT/models/NAME.

    Raises:
        InputError: if a folder is named twice, is no folder of a model, or has no scores.
    """
    if twice := [folder for folder, count in Counter(one.resolve() for one in folders).items() if count > 1]:
        raise InputError(f"{twice[0]} is named twice: name every model once")
    read = [(folder, read_model(folder), _read_sets(folder)) for folder in folders]
    names = Counter(model.name for _, model, _ in read)
    return [
        ScoredModel(model.name if names[model.name] == 1 else str(folder), folder, model, sets)
        for folder, model, sets in read
    ]


def expand(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of models, with every folder of an evaluation replaced by its models in the order of names."""
    found: list[Path] = []
    for folder in folders:
        inside = folder / MODELS_FOLDER
        found += sorted(one for one in inside.iterdir() if one.is_dir()) if inside.is_dir() else [folder]
    return found


def shared_cells(models: Sequence[ScoredModel]) -> SharedCells:
    """Return the cells that all models have, with their questions paired by id.

    Raises:
        InputError: if two models have the scores of other prompts in the same cell, if a model has a cell twice, or if
            no cell is left.
    """
    chosen = [_choose(model) for model in models]
    left_out = [note for _, notes in chosen for note in notes]
    by_model = [cells for cells, _ in chosen]
    keys = [key for key in by_model[0] if all(key in cells for cells in by_model)]
    left_out += list(_cells_left_out(models, by_model, set(keys)))
    for key in keys:
        _check_same_prompts(key, models, [cells[key][0] for cells in by_model])
    cells = []
    _check_same_metrics(by_model)
    for key in keys:
        cell = _pair(key, [cells[key] for cells in by_model])
        counts = [len(cells[key][1]) for cells in by_model]
        if len(cell.ids) < max(counts):
            shown = ", ".join(f"{model.name} {count}" for model, count in zip(models, counts, strict=True))
            left_out.append(f"{_shown(key)}: {len(cell.ids)} questions that all models have ({shown}).")
        if cell.ids:
            cells.append(cell)
    if not cells:
        raise InputError(
            f"{' and '.join(str(one.folder) for one in models)} have no question in common: make the answers of all "
            f"models to the same prompts"
        )
    used = {(cell.key[0], cell.key[2]): by_model[0][cell.key][0] for cell in cells}
    notes: dict[str, dict[str, None]] = {}
    for (suite, _), one in used.items():
        notes.setdefault(suite, {}).update(dict.fromkeys(one.notes))
    for model in models:
        for name, one in model.sets.items():
            if one.missing:
                left_out.append(f"{model.name}: {one.missing} examples of {name} have no answer.")
    return SharedCells(
        tuple(models),
        tuple(_ordered(cells, by_model[0])),
        tuple(one.recipe for one in used.values()),
        {suite: tuple(texts) for suite, texts in notes.items()},
        tuple(dict.fromkeys(left_out)),
        tuple(_unlike_engines(models, by_model, keys)),
    )


def _read_sets(folder: Path) -> dict[str, ScoredSet]:
    files = sorted((folder / SCORES_FOLDER).glob("*.jsonl"))
    if not files:
        raise InputError(f"{folder} has no scores: make them with `exact-titan eval score {folder}`")
    return {file.name: read_scores(file) for file in files}


Chosen = dict[CellKey, tuple[ScoredSet, list[Score]]]


def _choose(model: ScoredModel) -> tuple[Chosen, list[str]]:
    """Return the set and the scores of every cell of a model. Of two sets of different sizes, the larger set counts."""
    chosen: Chosen = {}
    notes = []
    for name, one in sorted(model.sets.items(), key=lambda item: -item[1].recipe.examples):
        by_cell: dict[CellKey, list[Score]] = {}
        for score in one.scores:
            by_cell.setdefault((one.recipe.suite, score.task, score.length), []).append(score)
        for key, scores in by_cell.items():
            if key not in chosen:
                chosen[key] = (one, scores)
                continue
            other = chosen[key][0]
            if unlike := unlike_recipes(other.recipe, one.recipe):
                raise InputError(
                    f"{model.folder / SCORES_FOLDER} has two prompt sets for {_shown(key)}, which differ in {unlike}: "
                    f"move {name}, or {other.recipe.file_name}, to another folder"
                )
            notes.append(f"{model.name}: {name} is left out for {other.recipe.file_name}, which has more examples.")
    return chosen, notes


def _check_same_prompts(key: CellKey, models: Sequence[ScoredModel], sets: Sequence[ScoredSet]) -> None:
    for model, one in zip(models[1:], sets[1:], strict=True):
        if unlike := unlike_recipes(sets[0].recipe, one.recipe):
            raise InputError(
                f"{models[0].folder} and {model.folder} have the scores of other prompts in {_shown(key)} ({unlike}): "
                f"a paired comparison needs the same suite version, seed, tokenizer, template and settings"
            )


def _check_same_metrics(by_model: Sequence[Chosen]) -> None:
    """Refuse sets of one suite with other metrics: their cells would not be the cells of one table."""
    metrics: dict[str, tuple[Metric, ...]] = {}
    for one in (one for cells in by_model for one, _ in cells.values()):
        suite = one.recipe.suite
        if not one.metrics or metrics.setdefault(suite, one.metrics) != one.metrics:
            raise InputError(
                f"the scores of {suite} have other metrics in {one.recipe.file_name} than in another file: make the "
                f"scores again with `exact-titan eval score`"
            )


def _shown(key: CellKey) -> str:
    suite, task, length = key
    return f"{suite}/{task}" + ("" if length is None else f" at {length}")


def _cells_left_out(models: Sequence[ScoredModel], by_model: Sequence[Chosen], shared: set[CellKey]) -> Iterator[str]:
    for model, cells in zip(models, by_model, strict=True):
        for suite in dict.fromkeys(key[0] for key in cells):
            alone = [key for key in cells if key[0] == suite and key not in shared]
            if alone:
                names = ", ".join(_shown(key) for key in alone[:4]) + (", …" if len(alone) > 4 else "")
                yield f"{model.name}: {len(alone)} cells of {suite} that another model does not have: {names}."


def _pair(key: CellKey, of_models: Sequence[tuple[ScoredSet, list[Score]]]) -> Cell:
    by_id = [{score.id: score for score in scores} for _, scores in of_models]
    ids = tuple(one for one in by_id[0] if all(one in scores for scores in by_id))
    metrics = of_models[0][0].metrics
    values = {
        metric.name: np.array(
            [[scores[one].values.get(metric.name, np.nan) for one in ids] for scores in by_id], dtype=np.float64
        )
        for metric in metrics
    }
    scores = [by_id[0][one] for one in ids]
    distance = np.array([-1 if one.distance is None else one.distance for one in scores], dtype=np.int64)
    numbers: dict[str, int] = {}
    unit = np.array([numbers.setdefault(one.unit or one.id, len(numbers)) for one in scores], dtype=np.int64)
    return Cell(key, metrics, ids, values, distance, unit)


def _ordered(cells: Sequence[Cell], first: Chosen) -> list[Cell]:
    """Return the cells by suite, length and task. The tasks have the order of their suite."""

    def place(cell: Cell) -> tuple[str, int, int]:
        suite, task, length = cell.key
        tasks = first[cell.key][0].recipe.tasks
        return suite, length or 0, tasks.index(task) if task in tasks else len(tasks)

    return sorted(cells, key=place)


def _unlike_engines(
    models: Sequence[ScoredModel], by_model: Sequence[Chosen], keys: Sequence[CellKey]
) -> Iterator[str]:
    """Yield the settings of the engines that differ between the models."""
    names = " / ".join(model.name for model in models)
    found = dict.fromkeys(
        text for key in keys for text in differences([engine_of(cells[key][0]) for cells in by_model])
    )
    for text in found:
        yield f"The engines differ in {text} ({names})."
    weights = Counter(model.model.weights for model in models)
    for model in models:
        if weights[model.model.weights] > 1:
            yield f"{model.name} has the same weights as another model: {model.model.weights[:12]}."
