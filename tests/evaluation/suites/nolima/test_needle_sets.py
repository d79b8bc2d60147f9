"""Needle sets: what a file may hold, and which questions come of it."""

import json
import re

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.suites.nolima.material import read_default_template
from exact_titan.evaluation.suites.nolima.needle_sets import NeedleSetRules, read_needle_set
from tests.evaluation.suites.nolima.folders import NAMES, TEMPLATE, entry
from tests.support import ROOT

RULES = NeedleSetRules()
GOLD = {"T1": {"input_args": ["a", "b", "c"], "gold_answers": "Ada"}}


@pytest.fixture
def read(tmp_path):
    def read(*entries, rules=RULES, default=None):
        file = tmp_path / "set.json"
        file.write_text(json.dumps(list(entries)))
        return read_needle_set(file, rules, default)

    return read


def test_the_placeholders_get_the_values_of_each_test(read):
    questions = read(entry())
    assert [one.name for one in questions] == [
        "0101_T1_onehop",
        "0101_T2_onehop",
        "0101_T1_twohop",
        "0101_T2_twohop",
    ]
    first = questions[0].about("Zora")
    assert first.needle == "Indeed, Zora sleeps beside the Louvre."
    assert first.question == "Who has seen Paris?"
    assert first.references == ("Zora",)
    assert questions[2].question == "Who has seen France?"
    assert questions[0].characters == tuple(NAMES)
    assert questions[0].template == TEMPLATE
    assert questions[0].distractor is None


def test_the_character_is_set_in_the_question_and_the_choices_too(read):
    fields = entry(questions={"onehop": "Who: Ada, {CHAR}?"}, choices=["Ada", "{CHAR}"])
    (question, _) = read(fields, rules=NeedleSetRules(choices=True))
    asked = question.about("Xenia")
    assert (asked.question, asked.choices, asked.references) == ("Who: Ada, Xenia?", ("Ada", "Xenia"), ("Xenia",))
    assert all(one.choices == () for one in read(fields))


def test_only_the_kinds_of_the_task_count(read):
    assert {one.kind for one in read(entry(), rules=NeedleSetRules(kinds=("direct",)))} == {"direct"}
    assert {one.kind for one in read(entry(), rules=NeedleSetRules(kinds=("twohop",)))} == {"twohop"}
    with pytest.raises(InputError, match=r"set\.json has no question of the kind direct"):
        read(entry(questions={"onehop": "Who?"}), rules=NeedleSetRules(kinds=("direct",)))


def test_a_needle_without_character_has_the_answers_of_its_test(read):
    tests = {
        "T1": {"input_args": ["x"], "gold_answers": ["red", "blue"]},
        "T2": {"input_args": ["x"], "gold_answers": "red"},
    }
    plain = entry(needle="The door is {1}.", questions={"onehop": "Which colour?"}, character_set=None, tests=tests)
    assert [one.references for one in read(plain)] == [("red", "blue"), ("red",)]
    del tests["T1"]["gold_answers"]
    with pytest.raises(InputError, match=r"\(0101\): the field tests\.T1\.gold_answers is missing"):
        read(plain)


@pytest.mark.parametrize(
    "field", ["id", "needle", "questions", "character_set", "tests", "task_template", "distractors"]
)
def test_a_missing_field_is_named_with_its_file_and_entry(read, field):
    rules = NeedleSetRules(distractors=True)
    with pytest.raises(InputError) as caught:
        read(entry(id="0100"), entry(**{field: None}), rules=rules)
    assert re.search(rf"set\.json: entry 2.*: the field {field} is missing", str(caught.value))
    assert "\n" not in str(caught.value)
    assert field == "id" or "entry 2 (0101)" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"needle": "See {4}."}, r"the field needle has the placeholder \{4\}, and a test has 3 input_args"),
        ({"questions": {"onehop": "Who is {9}?"}}, r"the field questions\.onehop has the placeholder \{9\}"),
        ({"questions": ["Who?"]}, "the field questions is not a JSON object of texts"),
        ({"tests": {"T7": {}}}, r"the field tests\.T7\.input_args is missing"),
        ({"tests": {"T7": {"input_args": "Paris"}}}, r"the field tests\.T7\.input_args is not a list of texts"),
        ({"tests": ["T7"]}, "the field tests is not a JSON object"),
        ({"needle": ""}, "the field needle is not a text"),
        ({"character_set": []}, "the field character_set is not a list of texts"),
        ({"task_template": "{haystack}"}, r"task_template does not have \{haystack\} and \{question\} once each"),
        ({"task_template": "{haystack}{question}{x}"}, "task_template has a placeholder that NoLiMa does not have"),
        ({"distractors": {"onehop": "A card."}}, r"the field distractors\.twohop is missing"),
        ({"choices": ["Ada", "Bea"]}, r"the field choices does not have \{CHAR\} once"),
        ({"choices": ["{CHAR}", "{CHAR}"]}, r"the field choices does not have \{CHAR\} once"),
        ({"choices": ["Ada", "{CHAR}"], "needle": "It is late.", "tests": GOLD}, "choices .* or the needle does not"),
        ({"choices": ["{CHAR}"]}, "the field choices has fewer than 2 names"),
    ],
)
def test_a_wrong_field_is_named(read, changes, fault):
    with pytest.raises(InputError, match=fault):
        read(entry(**changes), rules=NeedleSetRules(distractors=True, choices=True))


def test_a_file_that_is_no_needle_set_is_refused(tmp_path, read):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_needle_set(tmp_path / "none.json", RULES, None)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(InputError, match=r"bad\.json cannot be read as JSON"):
        read_needle_set(tmp_path / "bad.json", RULES, None)
    with pytest.raises(InputError, match="is not a list of JSON objects"):
        read("text")
    with pytest.raises(InputError, match="the question '0101_T1_onehop' occurs twice"):
        read(entry(), entry())


def test_the_default_template_comes_from_the_clone_of_the_user(tmp_path, read):
    assert read_default_template(tmp_path) is None
    script = tmp_path / "evaluation" / "run_tests.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit\nOTHER = 'x'\nDEFAULT_TASK_TEMPLATE = 'S {haystack} Q {question}'\n")
    template = read_default_template(tmp_path)
    assert template == "S {haystack} Q {question}"
    assert {one.template for one in read(entry(task_template=None), default=template)} == {template}
    script.write_text("DEFAULT_TASK_TEMPLATE = (")
    with pytest.raises(InputError, match=r"run_tests\.py cannot be read"):
        read_default_template(tmp_path)


def test_the_needle_set_of_the_documentation_is_complete(read):
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "nolima.md").read_text(encoding="utf-8"), re.DOTALL)
    onehop, twohop = read(*json.loads(block), rules=NeedleSetRules(distractors=True, choices=True))
    assert (onehop.question, twohop.question) == ("Who has lived in Berlin?", "Who has lived in Germany?")
    assert onehop.about("Ingrid").choices == ("Harriet", "Ingrid")
