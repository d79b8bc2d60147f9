"""The tasks of RULER: their prompts and their scores."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random

import exact_titan.evaluation.suites.ruler.common_words as common_words
import exact_titan.evaluation.suites.ruler.documents as documents
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
from exact_titan.evaluation.suites.ruler.qa_files import hotpotqa, squad
from exact_titan.evaluation.suites.ruler.vocabulary import Vocabulary, read_vocabulary

QA = {"qa_1": "squad", "qa_2": "hotpotqa"}
"""The tasks that need a file of the user's, with the option that names the file."""

ROOMS = {
    **dict.fromkeys(needles.TASKS, needles.ROOM),
    "vt": variables.ROOM,
    "cwe": common_words.ROOM,
    "fwe": frequent_words.ROOM,
    **dict.fromkeys(QA, documents.ROOM),
}
"""All tasks in the order of tables, with the tokens for the answer."""

_BATCH = 32
_Drafter = Callable[[Random, Cell, int], Draft]


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
            InputError: if ``--ruler.tasks`` names no task, or a task whose file is not named.
        """
        possible = [name for name in ROOMS if name not in QA or getattr(options, QA[name])]
        for name in options.tasks:
            if name not in ROOMS:
                hint = did_you_mean(name, ROOMS)
                raise InputError(f"--ruler.tasks: there is no task {name!r}{hint}; the tasks are {', '.join(ROOMS)}")
            if name not in possible:
                raise InputError(f"--ruler.tasks: the task {name} needs a file: name --ruler.{QA[name]} FILE")
        return tuple(name for name in possible if not options.tasks or name in options.tasks)

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of a request.

        Raises:
            InputError: before the first prompt, if a file is wrong or the length is too short for a task.
        """
        assert request.length is not None
        tasks = self.tasks(request.options)
        drafters, settings, notes = _drafters(tasks, request)
        makers = {name: partial(_example, request, name, drafters[name]) for name in tasks}
        first = {name: make(0) for name, make in makers.items()}

        def examples() -> Iterator[Example]:
            # The tokenizer releases the interpreter lock. An interruption waits for one batch at most.
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                for name, make in makers.items():
                    yield first[name]
                    for begin in range(1, request.examples, _BATCH):
                        yield from threads.map(make, range(begin, min(begin + _BATCH, request.examples)))

        return Prepared(examples(), settings, notes)

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the score of every example that has an answer."""
        return [_score(one, answers[one.id]) for one in examples if one.id in answers]


def _drafters(tasks: Sequence[str], request: Request) -> tuple[dict[str, _Drafter], dict[str, str], tuple[str, ...]]:
    """Return the function of every task that makes a draft, the digests of all files, and the notes for reports."""
    assert request.length is not None
    vocabulary = read_vocabulary()
    settings, notes = {"words": vocabulary.sha256}, [f"The words are those of wonderwords {vocabulary.version}."]
    drafters: dict[str, _Drafter] = {
        "vt": lambda rng, cell, _: variables.draft(rng, cell),
        "cwe": lambda rng, cell, _: common_words.draft(rng, cell, vocabulary),
        "fwe": lambda rng, cell, _: frequent_words.draft(rng, cell),
    }
    prose = None
    if any(needles.TASKS[name].haystack == "essay" for name in tasks if name in needles.TASKS):
        texts = read_texts(request.options.haystack, request.tokenizer)
        prose = Prose(texts.texts, request.tokenizer)
        settings["haystack"] = texts.sha256
        notes += _haystack_notes(texts, prose, request.length)
    for name, task in needles.TASKS.items():
        drafters[name] = partial(_needle_draft, task, vocabulary, prose)
    for name, form in (("qa_1", squad), ("qa_2", hotpotqa)):
        if name in tasks:
            file = documents.Documents(getattr(request.options, QA[name]), form, request.tokenizer, request.examples)
            settings[QA[name]], drafters[name] = file.sha256, file.draft
    return drafters, settings, tuple(notes)


def _needle_draft(
    task: needles.NeedleTask, vocabulary: Vocabulary, prose: Prose | None, rng: Random, cell: Cell, _: int
) -> Draft:
    return needles.draft(task, rng, cell, vocabulary, prose)


def _example(request: Request, task: str, drafter: _Drafter, index: int) -> Example:
    assert request.length is not None
    cell = Cell(task, request.length, ROOMS[task], request.tokenizer)
    rng = Random(f"{request.seed}/ruler/{task}/{request.length}/{index}")
    return example_of(drafter(rng, cell, index), cell, index)


def _haystack_notes(texts: Texts, prose: Prose, length: int) -> list[str]:
    tokens = int(prose.sizes.sum())
    if tokens >= length:
        return [texts.note]
    return [texts.note, f"The prose haystack has about {tokens} tokens, so it repeats in prompts of {length} tokens."]


def _score(example: Example, answer: Answer) -> Score:
    values: dict[str, float] = {}
    if answer.text is not None:
        match = string_match_part if example.task in QA else string_match_all
        values["accuracy"] = match(answer.text, example.references)
    if answer.logprobs:
        values["cross_entropy"] = -answer.logprobs[example.gold] / answer.tokens[example.gold]
    return Score(example.id, example.task, example.length, example.depth, example.distance, values)
