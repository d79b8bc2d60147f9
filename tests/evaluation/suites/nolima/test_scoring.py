"""Scores of hand-made answers by the published rules."""

import math

import pytest

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.suites.nolima.scoring import CHOICES, LAST_LINE, contains, score


def example(*, last_line=False, choices=False, references=("Yuki",), continuations=(" Yuki",), gold=0):
    meta = {LAST_LINE: last_line, CHOICES: choices}
    return Example(
        "nolima/base/64/0/x",
        "nolima",
        "base",
        "Zora. Yuki.",
        9,
        4,
        64,
        references,
        continuations,
        gold,
        depth=0.5,
        meta=meta,
    )


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Yuki", True),
        (" Yuki.", True),
        ("**Yuki**!", True),
        ("The answer is “Yuki”, I think.", True),
        ("yuki", False),
        ("YUKI", False),
        ("Yu ki", False),
        ("Zora", False),
        ("", False),
        ("   \n", False),
        ("Yukino", True),  # the rule is `in`, without borders of words
        ("Yuki\nor Zora", True),
    ],
)
def test_the_answer_contains_the_name_with_its_case(text, right):
    assert score(example(), Answer("x", text)).values == {"accuracy": float(right)}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Zora lives far away.\nYuki", True),
        ("Yuki lives there.\nZora", False),
        ("Yuki lives there.\n\nYuki.\n\n", True),
        ("Yuki", True),
        ("", False),
    ],
)
def test_only_the_last_line_of_a_chain_of_thought_counts(text, right):
    assert score(example(last_line=True), Answer("x", text)).values["accuracy"] == right


def test_any_of_several_references_counts():
    assert contains("It is blue.", ("red", "blue"), last_line=False)
    assert not contains("It is Blue.", ("red", "blue"), last_line=False)
    assert not contains("It is blue.", (), last_line=False)


def test_the_prompt_is_no_answer():
    assert score(example(references=("Zora",)), Answer("x", "Yuki")).values["accuracy"] == 0


def test_the_cross_entropy_is_a_mean_over_the_tokens_of_the_right_answer():
    result = score(example(), Answer("x", logprobs=(-3.0,), tokens=(2,), greedy=(False,)))
    assert result.values == {"cross_entropy": 1.5}
    assert (result.task, result.length, result.depth) == ("base", 64, 0.5)


def test_a_choice_needs_the_largest_likelihood():
    asked = example(choices=True, continuations=(" Ada", " Yuki", " Zora"), gold=1)

    def values(*logprobs):
        return score(asked, Answer("x", "Yuki", logprobs=logprobs, tokens=(1, 2, 1))).values

    assert values(-5.0, -4.0, -6.0) == {"accuracy": 1.0, "accuracy_choice": 1.0, "cross_entropy": 2.0}
    assert values(-3.0, -4.0, -6.0)["accuracy_choice"] == 0
    assert values(-4.0, -4.0, -4.0)["accuracy_choice"] == 0  # a model that prefers no choice is not right
    assert math.isclose(values(-3.0, -4.0, -6.0)["cross_entropy"], 2.0)
