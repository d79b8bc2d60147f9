"""The needle sets and the books of this package."""

import re

import pytest

from exact_titan.evaluation.options import NolimaOptions
from exact_titan.evaluation.suites import Request, find_suite
from exact_titan.evaluation.suites.nolima.material import read_material
from exact_titan.evaluation.suites.nolima.tasks import TASKS
from tests.evaluation.tokenizers import letters_tokenizer

FUNCTION_WORDS = set(re.findall(r"\w+", "the a an of and to in on by had has have all was with as is it"))


KEYWORDS = re.compile(
    r"\b(Berlin|Barcelona|Turkey|Prague|anvil|blacksmith|physician|sculptor|July|November|Bastille|Titanic|Spanish|Russian"
    r"|Dakar|Bogotá|merinos?|sheep|cows?|milk|eggs?|pigs?|wool)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def material(tokenizer):
    return read_material(None, tokenizer)


@pytest.fixture(scope="module")
def questions(material):
    return {name: material.questions(task) for name, task in TASKS.items()}


def words(text):
    return set(re.findall(r"\w+", text.lower())) - FUNCTION_WORDS


def test_the_variants_ask_about_the_same_needles(questions):
    assert {name: len(found) for name, found in questions.items()} == {
        "base": 40,
        "onehop": 20,
        "twohop": 20,
        "hard": 8,
        "distractor": 40,
        "multiple_choice": 40,
        "only_direct": 20,
        "chain_of_thought": 40,
    }
    needles = {one.needle for one in questions["base"]}
    assert len(needles) == 20
    for name, found in questions.items():
        assert {one.needle for one in found} == needles or name == "hard"
        assert len({one.characters for one in found}) == 1
        assert len(found[0].characters) == 10
    asked = {one.name: one.question for one in questions["base"]}
    for name in ("hard", "distractor", "chain_of_thought"):
        assert all(asked[one.name] == one.question for one in questions[name])
    for one in questions["multiple_choice"]:
        assert one.question.startswith(asked[one.name])
        assert all(choice in one.question for choice in one.choices)
        assert len(one.choices) == 4
    assert {one.template for one in questions["chain_of_thought"]}.isdisjoint(one.template for one in questions["base"])


def test_a_needle_and_its_question_share_no_word(questions):
    for one in questions["base"]:
        assert not words(one.needle) & words(one.question), one.name
    for one in questions["only_direct"]:
        assert len(words(one.needle) & words(one.question)) >= 2


def test_a_distractor_shares_words_with_the_question_and_not_with_the_needle(questions):
    for one in questions["distractor"]:
        assert words(one.distractor) & words(one.question), one.name
        assert not words(one.distractor) & words(one.needle), one.name


def test_no_book_has_an_answer_or_a_keyword(material, questions):
    assert len(material.books) == 5
    assert material.books[0].left_out > 0
    names = {name for one in questions["base"] for name in one.characters}
    for book in material.books:
        assert not any(name in book.text for name in names)
    assert not KEYWORDS.search(material.books[0].text)  # the books have the same lines
    for one in questions["multiple_choice"]:
        assert all(choice in material.books[0].text for choice in one.choices if choice != "{CHAR}")


def test_the_package_fills_every_task_without_a_folder(tokenizer):
    request = Request(1024, 2, 0, tokenizer, NolimaOptions(tasks=tuple(TASKS)))
    prepared = find_suite("nolima").prepare(request)
    examples = list(prepared.examples)
    assert [one.task for one in examples] == [task for task in TASKS for _ in range(2)]
    assert all(0.98 * 832 <= one.tokens <= 832 for one in examples)
    assert "needle sets are those of this package" in prepared.notes[0]
    assert "not comparable with the scores of the paper" in prepared.notes[0]
