"""The evidence probe: exact lengths and distances, balanced choices, and the margins of known models."""

import hashlib
import math
from collections import Counter, defaultdict
from importlib import import_module

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.haystacks import read_texts
from exact_titan.evaluation.options import ProbeOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Request, find_suite
from exact_titan.evaluation.suites.probe.words import NAMES
from tests.evaluation.tokenizers import letters_tokenizer

SUITE = find_suite("probe")
LENGTH = 1024


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def prepare(tokenizer, tmp_path_factory):
    """A function that prepares the suite with two chapters as haystack."""
    haystack = tmp_path_factory.mktemp("haystack")
    for name, text in zip("ab", read_texts(None, tokenizer).texts, strict=False):
        (haystack / f"{name}.txt").write_text(text)

    def prepared(length=LENGTH, examples=8, seed=0, haystack=haystack, tokenizer=tokenizer):
        return SUITE.prepare(Request(length, examples, seed, tokenizer, ProbeOptions(haystack)))

    return prepared


@pytest.fixture(scope="module")
def examples(prepare):
    return list(prepare().examples)


def passage(prompt):
    """Return the paragraph of the passage."""
    (found,) = [part for part in prompt.split("\n\n") if part.startswith(("Four people", "Shipment"))]
    return found


def cloze(prompt):
    """Return the first words of the answer."""
    return prompt.rsplit("Answer:", 1)[1].split(",")[-1]


def answers(examples, logprob):
    """Return the answers of a model that gives ``logprob(prompt, continuation)``."""
    return {
        one.id: Answer(one.id, logprobs=tuple(logprob(one.prompt, text) for text in one.continuations))
        for one in examples
    }


def noise(*texts):
    """Return a log-likelihood that depends on the texts alone."""
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return -20 * int.from_bytes(digest[:7], "big") / 2**56


def test_every_cell_has_its_examples_length_and_distance(tokenizer, examples):
    cells = Counter((one.task, one.meta["distance"], one.meta["variant"]) for one in examples)
    assert cells == {
        (task, distance, variant): 8
        for task in ("answer_position", "field_lookup")
        for distance in (128, 256, 512)
        for variant in ("evidence", "distractor")
    }
    assert len({one.id for one in examples}) == len(examples)
    for one in examples:
        assert tokenizer.count(one.prompt) == one.tokens
        assert 0.98 * LENGTH <= one.tokens + tokenizer.count(one.continuations[0]) <= LENGTH
        assert tokenizer.count(one.prompt.split(passage(one.prompt))[1]) == one.distance
        assert one.distance == one.meta["distance"]
        assert one.depth == pytest.approx(1 - one.distance / one.tokens)
        assert (one.suite, one.length, one.room, one.references) == ("probe", LENGTH, 0, ())


def test_the_two_variants_have_the_same_prompt_but_for_the_values(tokenizer, examples):
    pairs = defaultdict(dict)
    for one in examples:
        pairs[one.meta["pair"]][one.meta["variant"]] = one
    assert len(pairs) == len(examples) / 2
    for pair in pairs.values():
        evidence, distractor = pair["evidence"], pair["distractor"]
        passages = passage(evidence.prompt), passage(distractor.prompt)
        assert evidence.prompt.replace(*passages) == distractor.prompt
        assert len(set(map(tokenizer.count, passages))) == 1
        assert (evidence.continuations, evidence.gold) == (distractor.continuations, distractor.gold)
        assert len({tokenizer.count(choice) for choice in evidence.continuations}) == 1
        assert f"{cloze(evidence.prompt)}{evidence.continuations[evidence.gold]}" in passage(evidence.prompt)
        for choice in evidence.continuations:
            # Outside the passage with the evidence no choice occurs.
            assert choice not in distractor.prompt


def test_every_choice_is_right_equally_often(examples):
    right = Counter((one.meta["distance"], one.meta["variant"], one.continuations, one.gold) for one in examples)
    assert set(right.values()) == {1}
    assert len(right) == len(examples)


def test_questions_of_a_context_share_their_prompt_up_to_the_question(examples):
    groups = defaultdict(list)
    for one in examples:
        groups[one.prefix].append(one)
    assert [len(group) for group in groups.values()] == [3 * 2 * 4] * 4
    for group in groups.values():
        for first in range(0, len(group), 4):
            assert len({one.prompt.rsplit("\n\n", 1)[0] for one in group[first : first + 4]}) == 1
        # All distances start with the same text: the text before the evidence that lies the farthest away.
        farthest = group[-1].prompt.split(passage(group[-1].prompt))[0].removesuffix(" ...\n\n")
        assert len(farthest) > 500
        assert all(one.prompt.startswith(farthest) for one in group)


def test_an_example_depends_on_the_seed_the_task_the_length_and_its_index(prepare, examples):
    fewer = list(prepare(examples=6).examples)
    assert len(fewer) == len(examples) * 6 / 8
    by_id = {one.id: one for one in examples}
    assert all(by_id[one.id] == one for one in fewer)
    other = next(iter(prepare(seed=1).examples))
    assert other.id == examples[0].id
    assert other.prompt != examples[0].prompt


@pytest.mark.parametrize("template", ["dolly", "chat"])
def test_a_template_counts_for_the_length_and_the_distance(prepare, tmp_path, template):
    folder = tmp_path / "model"
    letters_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("<user>{{ messages[0].content }}</user><model>{{ '\\n' }}")
    tokenizer = PromptTokenizer(folder, template)
    made = list(prepare(examples=4, tokenizer=tokenizer).examples)
    assert len(made) == 2 * 3 * 2 * 4
    for one in made:
        assert 0.98 * LENGTH <= tokenizer.count(one.prompt) == one.tokens < LENGTH
        assert tokenizer.count(one.prompt.split(passage(one.prompt))[1]) == one.distance == one.meta["distance"]
        assert one.prompt.rstrip().endswith((" by", ":"))
        assert ("### Response:" if template == "dolly" else "<model>\n") in one.prompt


def test_the_notes_say_what_a_reader_must_know(prepare):
    notes = " ".join(prepare(examples=6, haystack=None).notes)
    assert "public-domain chapters" in notes
    assert "4 questions share a context" in notes
    assert "6 examples are not a multiple of 4" in notes
    assert "no room" not in notes
    fewer = prepare(length=1040)
    assert "Length 1040 has no room for the distances 1024." in fewer.notes
    assert fewer.settings["distances"] == [128, 256, 512]


def test_a_length_that_is_too_short_is_refused_with_the_length_that_is_enough(prepare):
    with pytest.raises(InputError, match=r"probe: a length of 160 tokens is too short: .* name a length of") as refused:
        prepare(length=160, examples=1)
    enough = int(str(refused.value).split()[-3])
    assert len(list(prepare(length=enough, examples=1).examples)) == 4
    with pytest.raises(InputError, match="is too short"):
        prepare(length=enough - 1, examples=1)


def test_a_haystack_full_of_the_values_is_refused(prepare, tmp_path):
    (tmp_path / "names.txt").write_text(" ".join(NAMES) + ".")
    with pytest.raises(InputError, match="the haystack contains all but 0 values of answer_position"):
        prepare(haystack=tmp_path)


def test_variants_with_different_numbers_of_tokens_are_refused(prepare, monkeypatch):
    module = import_module("exact_titan.evaluation.suites.probe.suite")
    monkeypatch.setattr(module, "words_of_one_size", lambda words, *_, **__: words)
    with pytest.raises(InputError, match="the evidence and the distractor of answer_position have different numbers"):
        prepare()


@pytest.mark.parametrize(
    "logprob",
    [
        lambda prompt, continuation: noise(continuation),
        lambda prompt, continuation: noise(prompt[-60:], continuation),
        lambda prompt, continuation: noise(prompt.replace(passage(prompt), ""), continuation),
    ],
    ids=["unigram", "question", "all but the passage"],
)
def test_a_model_that_ignores_the_evidence_has_a_context_margin_of_exactly_0(examples, logprob):
    scores = SUITE.score(examples, answers(examples, logprob))
    assert len(scores) == len(examples) / 2
    assert {score.values["context_margin"] for score in scores} == {0.0}
    assert len({score.values["margin_evidence"] for score in scores}) > 4


def test_a_model_of_single_words_is_right_in_a_quarter_of_the_questions(examples):
    scores = SUITE.score(examples, answers(examples, lambda prompt, continuation: noise(continuation)))
    assert sum(score.values["accuracy"] for score in scores) / len(scores) == 0.25


def test_a_model_that_copies_is_always_right(examples):
    def copies(prompt, continuation):
        return -1.0 if f"{cloze(prompt)}{continuation}" in passage(prompt) else -8.0

    scores = SUITE.score(examples, answers(examples, copies))
    assert {(*score.values.items(),) for score in scores} == {
        (("context_margin", 7.0), ("margin_evidence", 7.0), ("margin_distractor", 0.0), ("accuracy", 1.0))
    }


def test_a_model_that_copies_any_value_of_the_passage_has_no_context_margin(examples):
    def copies_any(prompt, continuation):
        return noise(continuation) / 100 + 5.0 * (continuation in passage(prompt))

    scores = SUITE.score(examples, answers(examples, copies_any))
    assert all(score.values["context_margin"] == pytest.approx(0, abs=1e-12) for score in scores)


def test_the_margins_of_a_hand_made_pair():
    pair = [
        Example(
            f"q/{variant}",
            "probe",
            "answer_position",
            "",
            tokens=15,
            room=0,
            length=16,
            continuations=(" A", " B", " C", " D"),
            gold=2,
            depth=0.4,
            distance=9,
            meta={"pair": "q", "variant": variant, "distance": 8},
        )
        for variant in ("evidence", "distractor")
    ]
    logs = {
        "q/evidence": tuple(map(math.log, (0.1, 0.2, 0.6, 0.05))),
        "q/distractor": tuple(map(math.log, (0.1, 0.4, 0.2, 0.3))),
    }
    given = {name: Answer(name, logprobs=values) for name, values in logs.items()}
    (score,) = SUITE.score(pair, given)
    assert (score.id, score.task, score.length, score.depth, score.distance) == ("q", "answer_position", 16, 0.4, 8)
    assert score.values == pytest.approx(
        {
            "margin_evidence": math.log(0.6 / 0.2),
            "margin_distractor": math.log(0.2 / 0.4),
            "context_margin": math.log(0.6 / 0.2) - math.log(0.2 / 0.4),
            "accuracy": 1,
        }
    )
    # A tie is no win.
    tie = {name: Answer(name, logprobs=(-1.0, -1.0, -1.0, -1.0)) for name in logs}
    assert SUITE.score(pair, tie)[0].values["accuracy"] == 0


def test_a_pair_without_both_answers_has_no_score(examples):
    given = answers(examples, lambda prompt, continuation: noise(continuation))
    del given[examples[0].id]
    scores = SUITE.score(examples, given)
    assert len(scores) == len(examples) / 2 - 1
    assert examples[0].meta["pair"] not in {score.id for score in scores}


def test_an_answer_without_likelihoods_is_named(examples):
    given = answers(examples, lambda prompt, continuation: noise(continuation))
    given[examples[1].id] = Answer(examples[1].id, text="Anna")
    with pytest.raises(InputError, match=f"the answer to {examples[1].id} has no log-likelihoods"):
        SUITE.score(examples, given)


def test_the_questions_have_equal_tokens_in_a_chat_template_without_a_space_before_the_answer(tmp_path):
    # A word after a space is one token, as in real tokenizers. Without the space the number of tokens differs.
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r" [A-Za-z]+|[A-Za-z]{1,4}|\s+|."), "isolated")
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}<assistant>{{ '\\n' }}"
    )
    tokenizer = PromptTokenizer(tmp_path, "chat")
    examples = list(SUITE.prepare(Request(LENGTH, 8, 0, tokenizer, ProbeOptions())).examples)
    assert {one.task for one in examples} == {"answer_position", "field_lookup"}
    for one in examples:
        assert "</><assistant>" in one.prompt
        assert 0.98 * LENGTH <= one.tokens + tokenizer.count(one.continuations[0]) <= LENGTH


def test_the_four_questions_about_a_context_are_one_unit(examples):
    scores = SUITE.score(examples, answers(examples, lambda prompt, continuation: noise(continuation)))
    units = Counter((score.unit, score.distance) for score in scores)
    assert set(units.values()) == {4}
    assert len({score.unit for score in scores}) == len({one.prefix for one in examples})
