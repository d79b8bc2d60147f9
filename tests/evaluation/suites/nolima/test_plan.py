"""The order of the grid."""

import itertools
from collections import Counter

import pytest

from exact_titan.evaluation.suites.nolima.plan import QUESTIONS_AT_A_PLACE, Cell, grid


@pytest.mark.parametrize(("questions", "books", "depths"), [(58, 5, 26), (7, 3, 4), (2, 5, 5), (1, 1, 2), (10, 5, 11)])
def test_every_cell_comes_once(questions, books, depths):
    cells = list(grid(questions, books, depths))
    assert set(cells) == {
        Cell(question, book, depth / (depths - 1))
        for question in range(questions)
        for book in range(books)
        for depth in range(depths)
    }
    assert len(cells) == questions * books * depths


def test_the_first_examples_are_balanced():
    cells = list(grid(58, 5, 26))
    assert {round(cell.depth * 25) for cell in cells[: 26 * QUESTIONS_AT_A_PLACE]} == set(range(26))
    used = Counter(cell.question for cell in cells[:116])
    assert set(used.values()) == {2}
    assert len(used) == 58
    books = Counter(cell.book for cell in cells[:100])
    assert set(books.values()) == {20}
    few = sorted({cell.depth for cell in cells[:20]})
    assert len(few) == 5
    assert max(after - before for before, after in itertools.pairwise(few)) <= 0.33


def test_the_questions_of_a_place_follow_each_other():
    cells = list(grid(58, 5, 26))
    places = [(cell.book, cell.depth) for cell in cells[:100]]
    changes = sum(one != two for one, two in itertools.pairwise(places))
    assert changes == 100 // QUESTIONS_AT_A_PLACE - 1
