"""A question before its context has a length, and the example that comes from it.

Every task of RULER is one module that makes drafts. :func:`example_of` fills the context of a draft and measures the
place of the evidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np

from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.filling import LEAST, Filled, fill
from exact_titan.evaluation.haystacks import NOISE
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

NOISE_LINE = " ".join(NOISE)
"""A line of the noise haystack."""

SENTENCE = 5
"""Approximate tokens of a sentence of noise."""


@dataclass(frozen=True)
class Cell:
    """What the examples of a task share at one length.

    Attributes:
        task: name of the task.
        length: context length in tokens, with the room.
        room: tokens for the answer.
        tokenizer: counts tokens, and adds the template of the model.
    """

    task: str
    length: int
    room: int
    tokenizer: PromptTokenizer


@dataclass(frozen=True)
class Draft:
    """A question whose context has no length yet.

    Attributes:
        context: returns the context with ``n`` pieces of the haystack and ``m`` fillers.
        sizes: approximate tokens of each piece, ``[pieces]``.
        fewest: smallest number of pieces.
        before: text of the prompt before the context.
        after: text of the prompt after the context.
        answer_prefix: first words of the answer, after the template.
        references: the right answers.
        gold: the right answer as it stands after the prompt.
        evidence: the sentence with the answer. The context has the sentence once. None: no single evidence.
        filler: approximate tokens of a filler. Fillers fill the rest when a further piece is too long. 0: the pieces
            are so small that the task needs no fillers.
    """

    context: Callable[[int, int], str]
    sizes: Sequence[int] | np.ndarray
    fewest: int
    before: str
    after: str
    answer_prefix: str
    references: tuple[str, ...]
    gold: str
    evidence: str | None = None
    filler: int = 0

    def filled(self, cell: Cell) -> tuple[Filled, str]:
        """Return the filled prompt and its context."""
        contexts: dict[str, str] = {}

        def render(pieces: int, fillers: int) -> str:
            context = self.context(pieces, fillers)
            prompt = cell.tokenizer.wrap(self.before + context + self.after, self.answer_prefix)
            contexts[prompt] = context
            return prompt

        filled = partial(fill, tokenizer=cell.tokenizer, task=f"ruler/{cell.task}", length=cell.length, room=cell.room)
        least = 0 if self.filler else LEAST
        found = filled(lambda pieces: render(pieces, 0), self.sizes, fewest=self.fewest, least=least)
        limit = cell.length - cell.room
        if self.filler and found.tokens < LEAST * limit:
            pieces, rest = found.pieces, limit - found.tokens
            found = filled(lambda fillers: render(pieces, fillers), [self.filler] * rest)
        return found, contexts[found.prompt]


def example_of(draft: Draft, cell: Cell, index: int) -> Example:
    """Return example ``index`` of a cell.

    Raises:
        InputError: if the draft does not fit the length of the cell.
    """
    found, context = draft.filled(cell)
    depth = distance = None
    if draft.evidence is not None:
        start = context.index(draft.evidence)
        depth = round(start / max(len(context) - len(draft.evidence), 1), 4)
        after = found.prompt.index(draft.evidence) + len(draft.evidence)
        (distance,) = cell.tokenizer.counts([found.prompt[after:]])
    gap = "" if found.prompt[-1:].isspace() else " "
    return Example(
        id=f"ruler/{cell.task}/{cell.length}/{index}",
        suite="ruler",
        task=cell.task,
        prompt=found.prompt,
        tokens=found.tokens,
        room=cell.room,
        length=cell.length,
        references=draft.references,
        continuations=(gap + draft.gold,),
        depth=depth,
        distance=distance,
    )


def noise_lines(lines: Sequence[str], sentences: int) -> str:
    """Return lines of text, and below the lines some sentences of noise in one line."""
    return "\n".join([*lines, *([" ".join(islice(cycle(NOISE), sentences))] if sentences else [])])


def listed(items: Sequence[str]) -> str:
    """Return ``a, b, and c``, as RULER lists the keys of a question."""
    return ", ".join(items[:-1]) + ", and " + items[-1] if len(items) > 1 else items[0]
