"""The tasks of RULER: their prompts and their scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import exact_titan.evaluation.suites.ruler.common_words as common_words
import exact_titan.evaluation.suites.ruler.frequent_words as frequent_words
import exact_titan.evaluation.suites.ruler.needles as needles
import exact_titan.evaluation.suites.ruler.variables as variables
from exact_titan.errors import InputError, did_you_mean
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.haystacks import Prose, Texts, read_texts
from exact_titan.evaluation.options import RulerOptions
from exact_titan.evaluation.scores import Metric, Score
from exact_titan.evaluation.suites import Prepared, Request
from exact_titan.evaluation.suites.ruler.drafts import Cell, Draft, example_of
from exact_titan.evaluation.suites.ruler.matching import string_match_all, string_match_part
from exact_titan.evaluation.suites.ruler.vocabulary import Vocabulary, read_vocabulary

TASKS = (*needles.TASKS, "vt", "cwe", "fwe")
"""The tasks that need no file of the user's."""

_ROOMS = {
    **dict.fromkeys(needles.TASKS, needles.ROOM),
    "vt": variables.ROOM,
    "cwe": common_words.ROOM,
    "fwe": frequent_words.ROOM,
}


class RulerSuite:
    """RULER as a :class:`exact_titan.evaluation.suites.Suite`."""

    name = "ruler"
    version = 1
    has_lengths = True
    metrics = (
        Metric("accuracy", "accuracy, %", higher_is_better=True, percent=True),
        Metric("cross_entropy", "cross-entropy of the gold answer, nats per token", False, False),
    )

    def tasks(self, options: RulerOptions) -> tuple[str, ...]:
        """Return the names of the tasks under these options, in the order of tables.

        Raises:
            InputError: if ``--ruler.tasks`` names no task.
        """
        for name in options.tasks:
            if name not in TASKS:
                hint = did_you_mean(name, TASKS)
                raise InputError(f"--ruler.tasks: there is no task {name!r}{hint}; the tasks are {', '.join(TASKS)}")
        return tuple(name for name in TASKS if not options.tasks or name in options.tasks)

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of a request.

        Raises:
            InputError: before the first prompt, if a file is wrong or the length is too short for a task.
        """
        assert request.length is not None
        tasks = self.tasks(request.options)
        vocabulary = read_vocabulary()
        settings: dict[str, Any] = {"words": vocabulary.sha256}
        notes = [f"The words are those of wonderwords {vocabulary.version}."]
        prose = None
        if any(name in needles.TASKS and needles.TASKS[name].haystack == "essay" for name in tasks):
            texts = read_texts(request.options.haystack, request.tokenizer)
            prose = Prose(texts.texts, request.tokenizer)
            settings["haystack"] = texts.sha256
            notes += _haystack_notes(texts, prose, request.length)
        makers = {name: partial(_example, request, name, self._drafter(name, vocabulary, prose)) for name in tasks}
        if request.examples > 0:
            for make in makers.values():
                make(0)

        def examples() -> Iterator[Example]:
            for make in makers.values():
                yield from map(make, range(request.examples))

        return Prepared(examples(), settings, tuple(notes))

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the score of every example that has an answer."""
        return [_score(one, answers[one.id]) for one in examples if one.id in answers]

    def _drafter(self, name: str, vocabulary: Vocabulary, prose: Prose | None) -> Callable[[Random, Cell], Draft]:
        if name == "vt":
            return variables.draft
        if name == "cwe":
            return partial(common_words.draft, vocabulary=vocabulary)
        if name == "fwe":
            return frequent_words.draft
        return partial(needles.draft, needles.TASKS[name], vocabulary=vocabulary, prose=prose)


def _example(request: Request, task: str, drafter: Callable[[Random, Cell], Draft], index: int) -> Example:
    assert request.length is not None
    cell = Cell(task, request.length, _ROOMS[task], request.tokenizer)
    rng = Random(f"{request.seed}/ruler/{task}/{request.length}/{index}")
    return example_of(drafter(rng, cell), cell, index)


def _haystack_notes(texts: Texts, prose: Prose, length: int) -> list[str]:
    tokens = int(prose.sizes.sum())
    if tokens >= length:
        return [texts.note]
    return [texts.note, f"The prose haystack has about {tokens} tokens, so it repeats in prompts of {length} tokens."]


def _score(example: Example, answer: Answer) -> Score:
    values: dict[str, float] = {}
    if answer.text is not None:
        match = string_match_part if example.task.startswith("qa_") else string_match_all
        values["accuracy"] = match(answer.text, example.references)
    if answer.logprobs:
        values["cross_entropy"] = -answer.logprobs[example.gold] / answer.tokens[example.gold]
    return Score(example.id, example.task, example.length, example.depth, example.distance, values)
