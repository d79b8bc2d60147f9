"""The scores of one model on one prompt set: one record per scored question.

The file ``<model folder>/scores/<name of the prompt set>`` is a pure function of the prompt set and the answers.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import AnswersHeader
from exact_titan.evaluation.examples import from_record
from exact_titan.evaluation.prompt_sets import PromptRecipe, PromptSet
from exact_titan.evaluation.record_files import read_header, read_records, write_records

FORMAT = 1
SCORES_FOLDER = "scores"


@dataclass(frozen=True)
class Metric:
    """A number that a suite gives to a question.

    Attributes:
        name: key in :attr:`Score.values`, such as ``accuracy``.
        title: words for tables and figures, with the unit.
        higher_is_better: the direction.
        percent: whether the value is a share from 0 to 1 that tables show in percent.
    """

    name: str
    title: str
    higher_is_better: bool
    percent: bool


@dataclass(frozen=True)
class Score:
    """The score of one question.

    Attributes:
        id: id of the question. The same question of two models has the same id. A question of a pair of examples has
            the id of the pair.
        task: name of the task.
        length: context length of the cell in tokens. None: a task without lengths.
        depth: place of the evidence, 0 to 1. None: no single evidence.
        distance: tokens from the end of the evidence to the end of the prompt. None: no single evidence.
        values: the value of every metric of the suite that the question has.
        unit: name of the text that several questions of a cell share, such as the context with the evidence. The values
            of such questions depend on each other, and an interval must not count them as independent. Empty: the
            question is independent of the others.
    """

    id: str
    task: str
    length: int | None
    depth: float | None
    distance: int | None
    values: dict[str, float]
    unit: str = ""


@dataclass(frozen=True)
class ScoredSet:
    """All scores of one model on one prompt set.

    Attributes:
        recipe: the recipe of the prompts.
        notes: the notes of the prompt set.
        answers: identity of the answers.
        missing: number of examples without an answer.
        metrics: the metrics of the suite. The first metric is the main one.
        scores: the scores.
    """

    recipe: PromptRecipe
    notes: tuple[str, ...]
    answers: AnswersHeader
    missing: int
    metrics: tuple[Metric, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class _Header:
    """The header of a file, without the kind and the format."""

    recipe: dict[str, Any]
    notes: tuple[str, ...]
    answers: dict[str, Any]
    missing: int
    metrics: tuple[dict[str, Any], ...]


def write_scores(
    file: Path,
    prompts: PromptSet,
    answers: AnswersHeader,
    scores: Iterable[Score],
    *,
    metrics: tuple[Metric, ...],
    missing: int,
) -> None:
    """Write the scores of a prompt set, atomically."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "kind": "scores",
        "recipe": asdict(prompts.recipe),
        "notes": list(prompts.notes),
        "answers": asdict(answers),
        "missing": missing,
        "metrics": [asdict(one) for one in metrics],
    }
    write_records(file, header, (asdict(one) for one in scores))


def read_scores(file: Path) -> ScoredSet:
    """Read a file of scores.

    Raises:
        InputError: if the file is not a file of scores.
    """
    header = read_header(file)
    if header.get("kind") != "scores" or header.get("format") != FORMAT:
        raise InputError(f"{file} is not a file of scores of format {FORMAT}: make it with `exact-titan eval score`")
    where = str(file)
    parts = from_record(_Header, {name: one for name, one in header.items() if name not in ("kind", "format")}, where)
    return ScoredSet(
        recipe=from_record(PromptRecipe, parts.recipe, where),
        notes=parts.notes,
        answers=from_record(AnswersHeader, parts.answers, where),
        missing=parts.missing,
        metrics=tuple(from_record(Metric, one, where) for one in parts.metrics),
        scores=tuple(
            from_record(Score, record, f"{where}: line {number}")
            for number, record in enumerate(read_records(file), start=2)
        ),
    )
