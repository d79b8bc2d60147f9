"""The published scores of RULER, on hand-made cases."""

import pytest

from exact_titan.evaluation.suites.ruler.matching import string_match_all, string_match_part


@pytest.mark.parametrize(
    ("text", "references", "score"),
    [
        ("It is 1234567.", ("1234567",), 1),
        ("1234567", ("1234568",), 0),
        ("", ("1234567",), 0),
        ("  \n", ("1234567",), 0),
        # Case does not count. A reference may stand inside a longer word.
        ("aaaaa, BBBBB and xCCCCCx", ("AAAAA", "bbbbb", "CCCCC"), 1),
        # Every reference counts by itself. Order and repeats do not count.
        ("two one one", ("one", "two", "three", "four"), 0.5),
        ("one", ("one", "two", "three"), 1 / 3),
        # Signs count: a digit group is another text.
        ("1,234,567", ("1234567",), 0),
        ("(1234567)", ("1234567",), 1),
        # A control character becomes a line break, so the reference is interrupted.
        ("ab\x07cd", ("abcd",), 0),
        ("ab\x07cd", ("cd",), 1),
    ],
)
def test_all_references_count_in_equal_shares(text, references, score):
    assert string_match_all(text, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "references", "score"),
    [
        ("in Paris, I think", ("Paris", "the city of Paris"), 1),
        ("IN PARIS", ("London", "paris"), 1),
        ("Rome", ("Paris", "London"), 0),
        ("", ("Paris",), 0),
    ],
)
def test_one_reference_is_enough_for_question_answering(text, references, score):
    # lm-eval 0.4.13 divides by the number of references here.
    assert string_match_part(text, references) == score
