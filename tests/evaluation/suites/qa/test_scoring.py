from dataclasses import replace

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.suites.qa.scoring import exact_match, score

CHOICES = Example(
    "qa/piqa/any/0", "qa", "piqa", "", 9, 0, continuations=(" ab", " abcdef"), gold=1, meta={"characters": [2, 6]}
)
NUMBER = Example(
    "qa/gsm8k/any/0", "qa", "gsm8k", "", 9, 256, references=("1,200",), continuations=(" So.\n#### 1,200",)
)


def test_acc_takes_the_likelier_choice_and_acc_norm_the_likelier_character() -> None:
    """-4 / 2 characters is less than -6 / 6 characters."""
    (one,) = score([CHOICES], {CHOICES.id: Answer(CHOICES.id, logprobs=(-4.0, -6.0), tokens=(1, 3))})
    assert (one.id, one.task, one.length) == ("qa/piqa/any/0", "piqa", None)
    assert one.values == {"accuracy": 0.0, "accuracy_norm": 1.0, "cross_entropy": 2.0}


def test_the_first_of_equal_choices_counts() -> None:
    """As in lm-eval, whose numpy.argmax returns the first maximum."""
    (one,) = score([CHOICES], {CHOICES.id: Answer(CHOICES.id, logprobs=(-6.0, -6.0), tokens=(1, 3))})
    assert one.values["accuracy"] == 0.0


def test_winogrande_compares_two_contexts() -> None:
    meta = {"question": "qa/winogrande/any/3", "gold": 1}
    pair = [
        replace(CHOICES, id=f"qa/winogrande/any/3/{k}", task="winogrande", continuations=(" rest",), gold=0, meta=meta)
        for k in (1, 2)
    ]
    answers = {pair[0].id: Answer(pair[0].id, logprobs=(-3.0,), tokens=(2,))}
    assert score(pair, answers) == []  # half a pair is no question
    answers[pair[1].id] = Answer(pair[1].id, logprobs=(-2.0,), tokens=(2,))
    (one,) = score(pair, answers)
    assert (one.id, one.values) == ("qa/winogrande/any/3", {"accuracy": 1.0, "cross_entropy": 1.0})


def test_a_generation_has_both_filters_and_the_likelihood_of_the_solution() -> None:
    answer = Answer(NUMBER.id, " 20 * 60 = 1200.\n#### 1200", 12, "stop", (-8.0,), (4,), (False,))
    (one,) = score([NUMBER], {NUMBER.id: answer})
    assert one.values == {"accuracy": 1.0, "accuracy_flexible": 1.0, "cross_entropy": 2.0}
    (one,) = score([NUMBER], {NUMBER.id: replace(answer, logprobs=(), tokens=())})
    assert one.values == {"accuracy": 1.0, "accuracy_flexible": 1.0}
    (one,) = score([NUMBER], {NUMBER.id: replace(answer, text=None)})
    assert one.values == {"cross_entropy": 2.0}


def test_choices_without_likelihoods_are_refused() -> None:
    with pytest.raises(
        InputError, match="the answer to qa/piqa/any/0 has no log-likelihoods, and the task piqa needs them"
    ):
        score([CHOICES], {CHOICES.id: Answer(CHOICES.id, "ab", 1, "stop")})


TEXTS = [
    "",
    "no number",
    "#### 1200",
    "#### 1,200",
    " #### $1200",
    "#### 1200.",
    "#### -1200",
    "#### 7 #### 1200",
    "####1200",
    "The answer is 1200",
    "The answer is $1,200.",
    "It is 1200, not 7",
    "It is 7, not 1200.00",
    "2 + 3 = 5",
    "...",
    "$",
    "#### ,",
]


def test_the_filters_are_those_of_lm_eval() -> None:
    """Every text, against the filters and the metric that lm-eval builds from its own gsm8k.yaml."""
    from exact_titan.evaluation.suites.qa.contexts import Contexts
    from exact_titan.evaluation.suites.qa.questions import Questions
    from exact_titan.evaluation.suites.qa.tasks import TASKS

    golds = [*(1200,) * len(TEXTS), *(5,) * len(TEXTS), *(-1200,) * len(TEXTS)]
    rows = [{"question": "?", "answer": f"x\n#### {gold:,}"} for gold in golds]
    task = Contexts({"gsm8k": Questions("test", rows, [])}, TASKS, {"gsm8k": 0}).tasks["gsm8k"]
    task.build_all_requests(limit=len(rows))
    for text, request in zip(TEXTS * 3, task.instances, strict=True):
        request.resps = [text]
    task.apply_filters()
    for row, request in zip(rows, task.instances, strict=True):
        for strict, name in ((True, "strict-match"), (False, "flexible-extract")):
            expected = task.process_results(row, [request.filtered_resps[name]])["exact_match"]
            reference = row["answer"].rpartition("#### ")[2]
            assert exact_match(request.resps[0], reference, strict=strict) == expected, (request.resps[0], name)
