"""The questions of the probe: a passage binds four values to four keys, and a question asks for the value of one key.

1. :func:`draw_passage` draws four keys, four values and four further values of the same type.
2. The evidence is the passage with the first four values. The distractor is the passage with the further values. The
   two passages have the same keys, the same words around the keys, and the same number of tokens.
3. The four values of the evidence are the choices of all four questions. Every choice is the right answer of one
   question, and its place in the passage is the index of the question.

The distractor contains no choice. A model that does not see the passage gives the same likelihoods to the choices in
both contexts. A model that copies any value of the passage, and does not read which key the value belongs to, raises
all choices alike.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites.probe.words import CITIES, FIELDS, NAMES, OBJECTS

CHOICES = 4
"""Choices of a question, and questions of a passage."""

VARIANTS = ("evidence", "distractor")
"""The variants of a passage."""


@dataclass(frozen=True)
class Task:
    """The wording of a task. ``{serial}`` is the number of a record, ``{key}`` and ``{value}`` are words.

    Attributes:
        keys, values: the words. Every word follows a space in the templates, so that its tokens are the same in all
            places. The cloze therefore begins with another word: a chat template may remove the space before it.
        opening, binding, between, closing: the passage is the opening, the bindings of all keys, with ``between``
            between two bindings, and the closing.
        question: the question after the context.
        cloze: the first words of the answer. The value follows after a space.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    opening: str
    binding: str
    between: str
    closing: str
    question: str
    cloze: str


TASKS = {
    "answer_position": Task(
        keys=OBJECTS,
        values=NAMES,
        opening="Four people each keep one thing of the club.",
        binding=" The {key} is kept by {value}.",
        between="",
        closing="",
        question="Question: Who keeps the {key}?\nAnswer:",
        cloze=" The {key} is kept by",
    ),
    "field_lookup": Task(
        keys=FIELDS,
        values=CITIES,
        opening="Shipment {serial}:",
        binding=" {key}: {value}",
        between=";",
        closing=".",
        question="Question: Which city is the {key} of shipment {serial}?\nAnswer:",
        cloze=" Shipment {serial}, {key}:",
    ),
}
"""The tasks by name, in the order of tables."""


@dataclass(frozen=True)
class Passage:
    """A passage in both variants, and its questions.

    Attributes:
        evidence: the passage with the choices.
        distractor: the passage with the values that are no choices.
        choices: the choices of all questions. The right answer of question ``k`` is ``choices[k]``.
        questions: for every choice the question and the first words of its answer.
    """

    evidence: str
    distractor: str
    choices: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def draw_passage(task: Task, rng: random.Random, *, keys: Sequence[str], values: Sequence[str]) -> Passage:
    """Return a random passage.

    Args:
        task: the wording.
        rng: the source of the choice.
        keys: words of the task with the same number of tokens, at least :data:`CHOICES`.
        values: words of the task with the same number of tokens, at least twice :data:`CHOICES`.
    """
    drawn = rng.sample(keys, CHOICES)
    bound = rng.sample(values, 2 * CHOICES)
    choices, others = bound[:CHOICES], bound[CHOICES:]
    serial = str(rng.randrange(1000, 10_000))

    def passage(values_: Sequence[str]) -> str:
        bindings = [task.binding.format(key=key, value=value) for key, value in zip(drawn, values_, strict=True)]
        return task.opening.format(serial=serial) + task.between.join(bindings) + task.closing

    questions = [
        (task.question.format(key=key, serial=serial), task.cloze.format(key=key, serial=serial)) for key in drawn
    ]
    return Passage(passage(choices), passage(others), tuple(choices), tuple(questions))


def words_of_one_size(words: Sequence[str], tokenizer: PromptTokenizer, *, least: int, what: str) -> tuple[str, ...]:
    """Return the words that have the most frequent number of tokens after a space.

    All choices then have the same number of tokens, so a sum of log-likelihoods needs no normalization. The two
    variants of a passage have the same number of tokens, too.

    Raises:
        InputError: if fewer than ``least`` words have the same number of tokens.
    """
    sizes = tokenizer.counts([f" {word}" for word in words])
    size, number = min(Counter(sizes).items(), key=lambda one: (-one[1], one[0]))
    if number < least:
        raise InputError(
            f"{tokenizer.folder}: only {number} {what} of the probe have the same number of tokens, and a question "
            f"needs {least}: leave the suite probe out for this tokenizer"
        )
    return tuple(word for word, its in zip(words, sizes, strict=True) if its == size)
