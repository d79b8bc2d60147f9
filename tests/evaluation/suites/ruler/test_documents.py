"""The two question answering tasks of RULER, from files in the published formats."""

import json
import re
from random import Random

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.options import RulerOptions
from exact_titan.evaluation.suites import Request, find_suite
from tests.evaluation.tokenizers import letters_tokenizer

SUITE = find_suite("ruler")
ARTICLES, PARAGRAPHS = 40, 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def paragraph(rng, name):
    """A text of 40 to 240 words that has a fact."""
    return f"The secret of {name} is gold{name}. " + " ".join(
        rng.choices(["some", "more", "words"], k=rng.randint(40, 240))
    )


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    rng = Random(0)

    def question(name):
        answers = [{"text": f"gold{name}"}, {"text": f"the gold{name}"}, {"text": f"gold{name}"}]
        impossible = {"question": "What else?", "answers": [], "is_impossible": True}
        return [impossible, {"question": f"What is the secret of {name}?", "answers": answers, "is_impossible": False}]

    names = [[f"A{a}P{p}" for p in range(PARAGRAPHS)] for a in range(ARTICLES)]
    articles = [{"paragraphs": [{"context": paragraph(rng, n), "qas": question(n)} for n in one]} for one in names]
    file = tmp_path_factory.mktemp("squad") / "dev-v2.0.json"
    file.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return file


@pytest.fixture(scope="module")
def hotpotqa(tmp_path_factory):
    rng = Random(0)
    context = [[[f"Q{q}D{d}", [paragraph(rng, f"Q{q}D{d}"), " End."]] for d in range(4)] for q in range(20)]
    questions = [
        {"question": f"Secret of Q{q}D1?", "answer": f"goldQ{q}D1", "context": c} for q, c in enumerate(context)
    ]
    file = tmp_path_factory.mktemp("hotpotqa") / "hotpot_dev_distractor_v1.json"
    file.write_text(json.dumps(questions))
    return file


def examples(tokenizer, length, count=8, **files):
    tasks = tuple({"squad": "qa_1", "hotpotqa": "qa_2"}[name] for name in files)
    return list(SUITE.prepare(Request(length, count, 0, tokenizer, RulerOptions(tasks, **files))).examples)


def documents_of(example):
    return dict(re.findall(r"Document \d+:\n(?:\w+\n)?The secret of (\w+) is (\w+)\.", example.prompt))


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_squad_has_the_paragraph_and_first_the_paragraphs_of_its_article(tokenizer, squad, length):
    for index, one in enumerate(examples(tokenizer, length, squad=squad)):
        name = f"A{index // PARAGRAPHS}P{index % PARAGRAPHS}"  # example k is question k of the file
        assert one.references == (f"gold{name}", f"the gold{name}")
        assert one.continuations == (f" gold{name}",)
        assert 0.98 * (length - 32) <= one.tokens <= length - one.room == length - 32
        found = documents_of(one)
        assert found[name] == f"gold{name}"
        assert len(found) == one.prompt.count("\nDocument ") >= 3
        assert [int(n) for n in re.findall(r"Document (\d+):", one.prompt)] == list(range(1, len(found) + 1))
        other = sum(not key.startswith(name.partition("P")[0] + "P") for key in found)
        assert other <= max(1, len(found) - PARAGRAPHS)
        assert one.prompt.endswith(
            "\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other "
            f"words.\n\nQuestion: What is the secret of {name}? Answer:"
        )


def test_hotpotqa_has_all_documents_of_the_question(tokenizer, hotpotqa):
    made = examples(tokenizer, 2048, hotpotqa=hotpotqa)
    assert len(made) == 8
    places = set()
    for index, one in enumerate(made):
        assert 0.98 * (2048 - 32) <= one.tokens <= 2048 - 32
        found = documents_of(one)
        assert {f"Q{index}D{d}" for d in range(4)} <= set(found)
        places.add(list(found).index(f"Q{index}D1"))
        assert one.references == (f"goldQ{index}D1",)
    assert len(places) > 2  # the documents are shuffled


def test_one_right_answer_is_enough(tokenizer, squad):
    made = examples(tokenizer, 1024, count=3, squad=squad)
    texts = (f"It is {made[0].references[0].upper()}.", "Something else.", "")
    scores = SUITE.score(made, {one.id: Answer(one.id, text) for one, text in zip(made, texts, strict=True)})
    assert [one.values["accuracy"] for one in scores] == [1.0, 0.0, 0.0]


def test_a_question_whose_documents_do_not_fit_is_refused(tokenizer, hotpotqa):
    with pytest.raises(
        InputError, match=r"ruler/qa_2: a length of 256 tokens is too short: the shortest prompt has \d+"
    ):
        examples(tokenizer, 256, hotpotqa=hotpotqa)


def test_a_file_with_too_few_documents_is_refused(tokenizer, hotpotqa):
    with pytest.raises(InputError, match=r"ruler/qa_2: the haystack fills only \d+ of 65504 tokens"):
        examples(tokenizer, 65536, hotpotqa=hotpotqa)


def test_the_tasks_need_their_files(tokenizer, squad, hotpotqa):
    both = RulerOptions(squad=squad, hotpotqa=hotpotqa)
    assert SUITE.tasks(both)[-2:] == ("qa_1", "qa_2")
    assert not {"qa_1", "qa_2"} & set(SUITE.tasks(RulerOptions()))
    with pytest.raises(InputError, match=r"the task qa_2 needs a file: name --ruler.hotpotqa FILE"):
        SUITE.tasks(RulerOptions(tasks=("qa_2",)))
    prepared = SUITE.prepare(Request(2048, 1, 0, tokenizer, RulerOptions(("qa_1", "qa_2"), None, squad, hotpotqa)))
    assert set(prepared.settings) == {"words", "squad", "hotpotqa"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not in the format of squad"),
        (b"[1]", "is not in the format of squad"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', r"is not in the format of squad \(KeyError: 'context'\)"),
        (b'{"data": []}', "has no questions with an answer"),
    ],
)
def test_a_file_in_another_format_is_named(tokenizer, tmp_path, content, message):
    file = tmp_path / "dev.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"dev.json {message}"):
        examples(tokenizer, 1024, squad=file)
    with pytest.raises(InputError, match="absent cannot be read"):
        examples(tokenizer, 1024, squad=tmp_path / "absent")


def test_too_few_questions_and_special_tokens_are_named(tokenizer, hotpotqa, tmp_path):
    with pytest.raises(InputError, match="has 20 questions with an answer: name --examples 20 or fewer"):
        examples(tokenizer, 2048, count=21, hotpotqa=hotpotqa)
    file = tmp_path / "special.json"
    file.write_text(hotpotqa.read_text().replace("Secret", "</s>", 1))
    with pytest.raises(InputError, match=r"special.json: a text spells the special token </s>"):
        examples(tokenizer, 2048, hotpotqa=file)
