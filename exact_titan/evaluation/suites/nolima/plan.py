"""The order of the examples of a task: which question stands at which place of which book.

The grid of NoLiMa has every question at every depth of every book. Any first part of the order is balanced:

1. A place is a book and a depth. The places follow each other by depth: the first depths are spread over the context
   (van der Corput sequence), and after every depth once, each depth gets the next book.
2. A visit of a place asks some questions (:data:`QUESTIONS_AT_A_PLACE`), because prompts of one place share all text up
   to the needle. The next visit asks the next questions, so that the questions are used evenly.
3. After all places, the places are visited again with the remaining questions, until the grid is complete.
"""

from collections.abc import Iterator
from dataclasses import dataclass

QUESTIONS_AT_A_PLACE = 4


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        question: index of the question.
        book: index of the book.
        depth: 0 (start of the context) to 1 (end of the context).
    """

    question: int
    book: int
    depth: float


def grid(questions: int, books: int, depths: int) -> Iterator[Cell]:
    """Yield every cell of a grid once."""
    order = sorted(range(depths), key=_reversed_bits)
    together = min(QUESTIONS_AT_A_PLACE, questions)
    for visit in range(-(-questions // together)):
        for number in range(books * depths):
            turn, position = divmod(number, depths)
            for step in range(visit * together, min((visit + 1) * together, questions)):
                yield Cell(
                    question=(number * together + step) % questions,
                    book=(turn + position) % books,
                    depth=depth_of(order[position], depths),
                )


def depth_of(step: int, depths: int) -> float:
    """Return a depth of the grid: ``depths`` equal steps from 0 to 1."""
    return step / max(depths - 1, 1)


def _reversed_bits(number: int) -> float:
    """Return a number's element of the van der Corput sequence, 0 to 1."""
    result, weight = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        result, weight = result + bit * weight, weight / 2
    return result
