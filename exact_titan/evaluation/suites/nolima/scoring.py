"""The scores of an answer, by the rules of ``evaluation/async_evaluate.py`` of github.com/adobe-research/NoLiMa.

An answer is right if it contains a right answer. Upper and lower case count. Of a chain of thought only the last line
counts (appendix C of arXiv 2502.05167).
"""

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.scores import Metric, Score

LAST_LINE = "last_line"
"""Key in :attr:`Example.meta`: whether only the last line of the answer counts."""

CHOICES = "choices"
"""Key in :attr:`Example.meta`: whether the continuations are the choices of the question."""

METRICS = (
    Metric("accuracy", "accuracy, %", higher_is_better=True, percent=True),
    Metric("accuracy_choice", "accuracy of the choice by likelihood, %", higher_is_better=True, percent=True),
    Metric("cross_entropy", "cross-entropy of the gold answer, nats per token", higher_is_better=False, percent=False),
)


def contains(text: str, references: tuple[str, ...], *, last_line: bool) -> bool:
    """Return whether a text, or its last line, contains one of the references."""
    if last_line:
        text = text.strip().split("\n")[-1]
    return any(reference in text for reference in references)


def score(example: Example, answer: Answer) -> Score:
    """Return the score of one answer. The right choice needs a larger log-likelihood than every other choice."""
    values: dict[str, float] = {}
    if answer.text is not None:
        values["accuracy"] = float(contains(answer.text, example.references, last_line=example.meta[LAST_LINE]))
    if answer.logprobs:
        gold = answer.logprobs[example.gold]
        if example.meta[CHOICES]:
            others = answer.logprobs[: example.gold] + answer.logprobs[example.gold + 1 :]
            values["accuracy_choice"] = float(gold > max(others))
        values["cross_entropy"] = -gold / answer.tokens[example.gold]
    return Score(example.id, example.task, example.length, example.depth, example.distance, values)
