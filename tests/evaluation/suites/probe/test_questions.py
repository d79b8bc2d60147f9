"""The questions of the probe: passages that differ in their values alone, with balanced choices."""

import random
import re

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.suites.probe import words
from exact_titan.evaluation.suites.probe.questions import TASKS, draw_passage, words_of_one_size
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", range(5))
def test_the_variants_differ_in_their_values_alone(name, seed):
    task = TASKS[name]
    passage = draw_passage(task, random.Random(seed), keys=task.keys, values=task.values)
    assert len(set(passage.choices)) == 4
    around = re.split("|".join(rf"\b{choice}\b" for choice in passage.choices), passage.evidence)
    assert len(around) == 5
    others = re.fullmatch(r"(\w+)".join(map(re.escape, around)), passage.distractor).groups()
    assert len(set(others) | set(passage.choices)) == 8
    assert set(others) <= set(task.values)


@pytest.mark.parametrize("name", TASKS)
def test_a_question_asks_for_the_value_behind_its_key(name):
    task = TASKS[name]
    passage = draw_passage(task, random.Random(0), keys=task.keys, values=task.values)
    assert len(passage.questions) == 4
    for (question, cloze), choice in zip(passage.questions, passage.choices, strict=True):
        # The last words of the cloze stand in the passage, and the value follows.
        assert f"{cloze.rpartition(',')[2]} {choice}" in passage.evidence
        (key,) = [key for key in task.keys if re.search(rf"\b{key}\b", cloze)]
        assert re.search(rf"\b{key}\b", question)
        assert not any(value in question + cloze for value in task.values)


@pytest.mark.parametrize("words_", [words.NAMES, words.CITIES, words.OBJECTS, words.FIELDS])
def test_the_words_of_a_list_are_different(words_):
    assert len(set(words_)) == len(words_) >= 20


def test_words_of_the_most_frequent_size(tokenizer):
    # " Angela" has two pieces of up to four letters.
    assert words_of_one_size(["Angela", "Tim", "Wendy", "Kim", "Jessica"], tokenizer, least=3, what="values") == (
        "Angela",
        "Wendy",
        "Jessica",
    )
    # Two sizes are equally frequent: the smaller size.
    assert words_of_one_size(["Angela", "Tim", "Wendy", "Kim"], tokenizer, least=2, what="values") == ("Tim", "Kim")
    with pytest.raises(InputError, match=r"only 2 values of the probe have the same number of tokens, .* needs 3"):
        words_of_one_size(["Angela", "Tim", "Kim"], tokenizer, least=3, what="values")
