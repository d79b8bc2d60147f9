"""The books: haystacks of lines, and the place of a sentence at the end of a line.

Rules of ``data/book_haystack.py`` of github.com/adobe-research/NoLiMa:

1. The needle stands at the end of the first line of the book that ends at or after the depth of the needle.
2. The window of the prompt begins so many tokens before this line end that the needle has exactly its depth.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np

from exact_titan.errors import InputError
from exact_titan.evaluation.haystacks import sentences_of
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

OWN_BOOKS = 5
"""Number of books that are made of the chapters of this package. NoLiMa also has five."""

_LINE = 400  # letters of a line of an own book, at most, if its sentences allow
_SNIPPET = 1000  # letters of a snippet of an own book, at least: MIN_LEN_CHAR of data/random_book_gen_char.ipynb


@dataclass(frozen=True)
class Book:
    """A haystack.

    Attributes:
        name: name in ids and messages.
        text: the lines.
        left_out: number of lines that are not part of the text, because an answer or a distracting word is in the line.
    """

    name: str
    text: str
    left_out: int = 0

    def without(self, answers: Iterable[str]) -> "Book":
        """Return the book without the lines that contain an answer. Upper and lower case count, as in the score."""
        answers = tuple(answers)
        lines = self.text.split("\n")
        kept = [line for line in lines if not any(answer in line for answer in answers)]
        return Book(self.name, "\n".join(kept), self.left_out + len(lines) - len(kept))


def own_books(texts: Sequence[str], distracting_words: Sequence[str]) -> list[Book]:
    """Return books of shuffled snippets of texts. No line has a distracting word.

    A snippet is a run of lines of one text. The books differ in the order of the snippets.
    """
    distracting = re.compile(rf"\b(?:{'|'.join(map(re.escape, distracting_words))})s?\b", re.IGNORECASE)
    snippets: list[list[str]] = []
    left_out = 0
    for text in texts:
        snippet: list[str] = []
        for line in _lines(text):
            if distracting.search(line):
                left_out += 1
                continue
            snippet.append(line)
            if sum(map(len, snippet)) >= _SNIPPET:
                snippets.append(snippet)
                snippet = []
        snippets += [snippet] if snippet else []
    books = []
    for number in range(1, OWN_BOOKS + 1):
        order = snippets.copy()
        Random(f"nolima/book {number}").shuffle(order)
        books.append(Book(f"own_book_{number}", "\n".join(line for one in order for line in one), left_out))
    return books


def _lines(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if paragraph == paragraph.upper():  # a heading, such as a number
            continue
        line = ""
        for sentence in sentences_of(paragraph):
            if line and len(line) + 1 + len(sentence) > _LINE:
                lines.append(line)
                line = ""
            line = f"{line} {sentence}" if line else sentence
        lines += [line] if line else []
    return lines


@dataclass(frozen=True)
class Place:
    """A place for a sentence in a book.

    Attributes:
        token: number of tokens of the book before the place.
        line_break: index of the letter ``\\n`` that the sentence comes before. -1: the sentence comes before the book.
    """

    token: int
    line_break: int


@dataclass(frozen=True)
class Window:
    """A part of a book with sentences at the ends of lines.

    Attributes:
        book: the book.
        first: index of the first token.
        sentences: places and sentences, in the order of the places.
    """

    book: "BookTokens"
    first: int
    sentences: tuple[tuple[Place, str], ...]

    @property
    def least_end(self) -> int:
        """Index of the token that follows the last sentence."""
        return self.book.token_after(self.sentences[-1][0].line_break)

    def text(self, end: int) -> str:
        """Return the text up to a token of the book. ``end`` is at least :attr:`least_end`."""
        parts: list[str] = []
        start = self.book.letters[self.first, 0] if self.first else 0
        for place, sentence in self.sentences:
            parts += [self.book.text[start : max(place.line_break, 0)], " ", sentence, "\n"]
            start = place.line_break + 1
        parts.append(self.book.text[start : max(start, self.book.letters[end - 1, 1])] if end > self.least_end else "")
        return "".join(parts)


class BookTokens:
    """The beginning of a book with the letters of its tokens.

    Args:
        book: the book.
        tokenizer: the tokenizer of the model.
        tokens: number of tokens that are needed. The book ends with the line in which this number is reached.

    Attributes:
        name: name of the book.
        text: the beginning of the book.
        letters: first letter of every token, and the letter after its last one, int64 ``[tokens, 2]``.
    """

    def __init__(self, book: Book, tokenizer: PromptTokenizer, tokens: int) -> None:
        self.name = book.name
        size = 6 * tokens
        while True:
            end = book.text.find("\n", size)
            self.text = book.text if end < 0 else book.text[: end + 1]
            self.letters = np.array(tokenizer.spans(self.text), dtype=np.int64).reshape(-1, 2)
            if len(self.letters) >= tokens or end < 0:
                break
            size *= 2

    def __len__(self) -> int:
        return len(self.letters)

    @cached_property
    def _places(self) -> list[Place]:
        breaks = np.array([found.start() for found in re.finditer("\n", self.text)], dtype=np.int64)
        before = np.searchsorted(self.letters[:, 0], breaks)
        return [Place(0, -1), *(Place(int(a), int(b)) for a, b in zip(before, breaks, strict=True))]

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.array([place.token for place in self._places], dtype=np.int64)

    def token_after(self, letter: int) -> int:
        """Return the index of the first token that begins after a letter."""
        return int(np.searchsorted(self.letters[:, 0], letter, side="right"))

    def place(self, depth: float, tokens: int, where: str) -> tuple[int, Place]:
        """Return the first token of a window, and the line end in the window at a depth.

        Args:
            depth: 0 (start of the window) to 1 (end of the window).
            tokens: number of tokens of the window.
            where: task and length in messages.

        Raises:
            InputError: if the book is too short.
        """
        index = int(np.searchsorted(self._tokens, depth * (tokens + 1)))
        first = self._places[index].token - round(depth * tokens) if index < len(self._places) else 0
        if index == len(self._places) or first + tokens > len(self):
            raise InputError(
                f"{where}: the book {self.name} has {len(self)} tokens without the lines with answers, and {tokens} "
                f"tokens are needed: name a folder with longer books or shorter lines, or a shorter length"
            )
        return first, self._places[index]

    def other_place(self, depth: float, first: int, tokens: int, taken: Place, where: str) -> Place:
        """Return the first line end at or after a depth of a window that is not taken, or the last one before.

        Raises:
            InputError: if the window has only one line end.
        """
        free = [one for one in self._places if first < one.token < first + tokens and one != taken]
        if not free:
            raise InputError(
                f"{where}: the book {self.name} has no second line end in {tokens} tokens: name a folder with shorter "
                f"lines, or a longer length"
            )
        return next((one for one in free if one.token >= first + depth * tokens), free[-1])
