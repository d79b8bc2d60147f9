"""The metrics of lm-eval 0.4.13, computed from examples and answers. ``tests`` compare them with lm-eval's own numbers.

- Choices: ``acc`` is whether the right choice has the largest log-likelihood. ``acc_norm`` divides each log-likelihood
  by the number of characters of its choice.
- WinoGrande: two contexts and one continuation. ``acc`` is whether the continuation is more likely after the right
  context.
- GSM8K: ``exact_match`` with the filter ``strict-match`` (the number after ``####``) or ``flexible-extract`` (the last
  number).
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.scores import Score

# The regular expressions of lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
_INVALID = "[invalid]"


def score(examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
    """Return the scores of the questions whose examples all have an answer.

    Raises:
        InputError: if the answers to a task by likelihood have no log-likelihoods.
    """
    questions: dict[str, list[Example]] = {}
    for example in examples:
        questions.setdefault(example.meta.get("question", example.id), []).append(example)
    return [
        Score(id=name, task=asked[0].task, length=None, depth=None, distance=None, values=values)
        for name, asked in questions.items()
        if all(one.id in answers for one in asked)
        for values in [dict(_values(asked, [answers[one.id] for one in asked]))]
    ]


def _values(asked: Sequence[Example], given: Sequence[Answer]) -> Iterator[tuple[str, float]]:
    example, answer = asked[0], given[0]
    if example.room:
        if answer.text is not None:
            yield "accuracy", exact_match(answer.text, example.references[0], strict=True)
            yield "accuracy_flexible", exact_match(answer.text, example.references[0], strict=False)
        if answer.logprobs:
            yield "cross_entropy", -answer.logprobs[0] / answer.tokens[0]
        return
    logprobs = [value for one in given for value in one.logprobs]
    tokens = [value for one in given for value in one.tokens]
    if len(logprobs) != sum(len(one.continuations) for one in asked):
        raise InputError(
            f"the answer to {example.id} has no log-likelihoods, and the task {example.task} needs them: make the "
            f"answers with an engine that measures likelihoods"
        )
    gold = example.meta.get("gold", example.gold)
    yield "accuracy", float(_largest(logprobs) == gold)
    if "characters" in example.meta:
        by_character = [value / length for value, length in zip(logprobs, example.meta["characters"], strict=True)]
        yield "accuracy_norm", float(_largest(by_character) == gold)
    yield "cross_entropy", -logprobs[gold] / tokens[gold]


def _largest(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal values."""
    return max(range(len(values)), key=values.__getitem__)


def exact_match(text: str, reference: str, *, strict: bool) -> float:
    """Return 1.0 if the number in a generated text is the number of the reference, else 0.0.

    Args:
        text: the generated text.
        reference: the right number.
        strict: whether the number must follow ``####``. Otherwise the last number of the text counts.
    """
    if strict:
        first = _STRICT.search(text)
        found = first[1] if first else _INVALID
    else:
        last = _INVALID
        for match in _FLEXIBLE.finditer(text):
            last = match[0]
        found = last
    return float(_normalized(found.strip()) == _normalized(reference))


def _normalized(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()
