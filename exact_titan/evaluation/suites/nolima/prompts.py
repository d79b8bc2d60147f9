"""The prompts of one task at one length.

1. The haystack gets the tokens that the longest needle and question of the task leave free. All prompts of a place (a
   book and a depth) therefore begin with the same text.
2. A needle takes its place in a book (:mod:`books`), and a distractor takes another one.
3. The text after the needle is filled up to ``length - room`` tokens.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.filling import PromptDoesNotFit, fill
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites.nolima.books import BookTokens, Window
from exact_titan.evaluation.suites.nolima.needle_sets import Question
from exact_titan.evaluation.suites.nolima.plan import Cell, depth_of, grid
from exact_titan.evaluation.suites.nolima.scoring import CHOICES, LAST_LINE
from exact_titan.evaluation.suites.nolima.tasks import TASKS

ROOM = 192
"""Tokens of an answer: ``max_tokens`` of NoLiMa's model configurations, also for a chain of thought."""

_LEAST_HAYSTACK = 64  # tokens; a shorter haystack hides no needle
_SLACK = 8  # tokens at the borders of the pieces, whose counts do not add up
_SURE = 64  # tokens; a haystack that has so many tokens less than the window fits without a count
_FREE_ZONE = 0.2  # share of the context without distractor: around the needle, at the start and at the end
_SHORT = 500  # tokens; in a shorter haystack the distractor has a fixed depth


def tokens_of_books(length: int) -> int:
    """Return the number of tokens of a book that are enough for the windows of a length."""
    return 2 * length  # a window begins up to one line after the start of the book


class TaskPrompts:
    """The prompts of a task.

    Args:
        task: name of the task.
        questions: questions of its needle set.
        books: the haystacks, without the answers, with :func:`tokens_of_books` tokens or more.
        tokenizer: tokenizer and template of the model.
        length: context length in tokens, with the room.
        seed: seed of the order of the questions, the characters and the distractors' places.
        depths: number of depths from 0 to 1.

    Raises:
        InputError: if the length is too short for a question, or if a book is too short for the length.
    """

    def __init__(
        self,
        task: str,
        questions: Sequence[Question],
        books: Sequence[BookTokens],
        *,
        tokenizer: PromptTokenizer,
        length: int,
        seed: int,
        depths: int,
    ) -> None:
        self._task, self._length, self._seed, self._depths = task, length, seed, depths
        self._tokenizer = tokenizer
        self._where = f"nolima/{task} at {length} tokens"
        # The order, the characters and the distractors' depths do not depend on the length: the lengths are paired.
        self._questions = list(questions)
        Random(f"{seed}/nolima/{task}").shuffle(self._questions)
        self._tokens = self._haystack_tokens()
        self._books = books
        for book in books:
            for step in range(depths):
                book.place(depth_of(step, depths), self._tokens, self._where)

    @property
    def count(self) -> int:
        """Number of examples of the whole grid."""
        return len(self._questions) * len(self._books) * self._depths

    def examples(self, number: int) -> Iterator[Example]:
        """Yield the first examples of the grid."""
        cells = grid(len(self._questions), len(self._books), self._depths)
        for index, cell in enumerate(islice(cells, number)):
            yield self._example(index, cell)

    def _example(self, index: int, cell: Cell) -> Example:
        question = self._questions[cell.question]
        if question.characters:
            rng = Random(f"{self._seed}/nolima/{self._task}/{index}")
            question = question.about(rng.choice(question.characters))
        window = self._window(self._books[cell.book], cell, question)
        least_end = window.least_end
        filled = fill(
            lambda pieces: self._prompt(question, window.text(least_end + pieces)),
            [1] * min(len(window.book) - least_end, self._length),
            tokenizer=self._tokenizer,
            task=f"nolima/{self._task}",
            length=self._length,
            room=ROOM,
            fewest=max(0, window.first + self._tokens - _SURE - least_end),
        )
        prompt = filled.prompt
        evidence = prompt.index(question.needle)
        shared = prompt[: min(prompt.index(sentence) for _, sentence in window.sentences)]
        continuations = question.choices or question.references[:1]
        space = "" if prompt[-1].isspace() else " "
        return Example(
            id=f"nolima/{self._task}/{self._length}/{index}/{question.name}",
            suite="nolima",
            task=self._task,
            prompt=prompt,
            tokens=filled.tokens,
            room=ROOM,
            length=self._length,
            references=question.references,
            continuations=tuple(space + one for one in continuations),
            gold=continuations.index(question.references[0]),
            depth=cell.depth,
            distance=filled.tokens - self._tokenizer.count(prompt[: evidence + len(question.needle)]),
            prefix=f"{window.book.name}/{cell.depth:.3f}/{hashlib.sha256(shared.encode('utf-8')).hexdigest()[:8]}",
            meta={
                LAST_LINE: TASKS[self._task].last_line,
                CHOICES: bool(question.choices),
                "kind": question.kind,
                "book": window.book.name,
                "needle": question.needle,
                "distractor": question.distractor,
            },
        )

    def _window(self, book: BookTokens, cell: Cell, question: Question) -> Window:
        first, place = book.place(cell.depth, self._tokens, self._where)
        sentences = [(place, question.needle)]
        if question.distractor is not None:
            depth = self._distractor_depth(cell)
            other = book.other_place(depth, first, self._tokens, place, self._where)
            sentences.append((other, question.distractor))
        return Window(book, first, tuple(sorted(sentences, key=lambda one: one[0].line_break)))

    def _distractor_depth(self, cell: Cell) -> float:
        """Return the depth of the distractors of a place.

        Rules of ``data/book_haystack.py`` of NoLiMa: uniform over the depths that are 0.2 or more away from the needle,
        from the start and from the end.
        """
        if self._tokens < _SHORT:
            return 0.7 if cell.depth < 0.6 else 0.6 if cell.depth > 0.75 else 0.5
        left = max(0.0, cell.depth - 2 * _FREE_ZONE)
        right = max(0.0, 1 - cell.depth - 2 * _FREE_ZONE)
        drawn = Random(f"{self._seed}/nolima/{self._task}/{cell.book}/{cell.depth}").uniform(0, left + right)
        return _FREE_ZONE + drawn if drawn <= left else cell.depth + _FREE_ZONE + drawn - left

    def _haystack_tokens(self) -> int:
        """Return the number of tokens of a book that fit beside the longest needle and question."""
        names = sorted({name for question in self._questions for name in question.characters})
        counts = dict(zip(names, self._tokenizer.counts([f" {name}" for name in names]), strict=True))
        longest = 0
        for question in self._questions:
            if question.characters:
                question = question.about(max(question.characters, key=lambda name: counts[name]))
            sentences = [question.needle, *([question.distractor] if question.distractor else [])]
            haystack = "".join(f" {sentence}\n" for sentence in sentences)
            longest = max(longest, self._tokenizer.count(self._prompt(question, haystack)) + _SLACK)
        tokens = self._length - ROOM - longest
        if tokens < _LEAST_HAYSTACK:
            least = longest + ROOM + _LEAST_HAYSTACK
            raise PromptDoesNotFit(
                f"nolima/{self._task}: a length of {self._length} tokens is too short: needle and question have "
                f"{longest} tokens, the answer has room for {ROOM}, and the haystack needs {_LEAST_HAYSTACK}: name a "
                f"length of {least} or more"
            )
        return tokens

    def _prompt(self, question: Question, haystack: str) -> str:
        return self._tokenizer.wrap(question.template.format(haystack=haystack, question=question.question))
