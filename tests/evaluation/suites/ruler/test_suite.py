"""The tasks of RULER: the facts of every prompt, its length, and the scores of answers."""

import re
from collections import Counter, defaultdict
from itertools import islice

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.haystacks import read_texts
from exact_titan.evaluation.options import RulerOptions
from exact_titan.evaluation.suites import Request, find_suite
from exact_titan.evaluation.suites.ruler.suite import QA, ROOMS
from tests.evaluation.tokenizers import letters_tokenizer

SUITE = find_suite("ruler")
PUBLISHED_ROOMS = defaultdict(lambda: 128, vt=30, cwe=120, fwe=50)
TASKS = [name for name in ROOMS if name not in QA]
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+(?: \S+)*?) is: (\S+)\.(?=\s|$)")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """A function that returns the examples of tasks at a length. The examples are made once."""
    kept = {}
    essays = tmp_path_factory.mktemp("essays")
    (essays / "essay.txt").write_text(read_texts(None, tokenizer).texts[0])

    def make(length, *tasks, count=4, seed=0):
        key = (length, tasks, count, seed)
        if key not in kept:
            request = Request(length, count, seed, tokenizer, RulerOptions(tasks, essays))
            kept[key] = list(SUITE.prepare(request).examples)
        return kept[key]

    return make


def text_of(example):
    """The context of an example: the prompt without the question and without the answer prefix."""
    return example.prompt.rpartition("\n")[0]


@pytest.mark.parametrize("length", [1024, 4096])
def test_every_prompt_fills_its_length(made, tokenizer, length):
    examples = made(length)
    assert Counter(one.task for one in examples) == dict.fromkeys(TASKS, 4)
    for one in examples:
        assert one.room == PUBLISHED_ROOMS[one.task]
        assert 0.98 * (length - one.room) <= one.tokens <= length - one.room
        assert one.tokens == tokenizer.count(one.prompt)
        assert one.length == length


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_a_copy_of_the_references_scores_1_and_silence_scores_0(made, length):
    examples = made(length)
    copied = {one.id: Answer(one.id, " ".join(one.references).upper()) for one in examples}
    silent = {one.id: Answer(one.id, "") for one in examples}
    gold = {one.id: Answer(one.id, one.continuations[0]) for one in examples}
    for answers, value in ((copied, 1.0), (gold, 1.0), (silent, 0.0)):
        scores = SUITE.score(examples, answers)
        assert [(one.id, one.values) for one in scores] == [(one.id, {"accuracy": value}) for one in examples]


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_the_depths_cover_the_context_and_every_depth_scores(made, task):
    examples = made(1024, task, count=80)
    depths = [one.depth for one in examples]
    assert min(depths) < 0.05
    assert max(depths) > 0.9
    assert all(any(low <= one < low + 0.2 for one in depths) for low in (0, 0.2, 0.4, 0.6, 0.8 - 1e-9))
    for text, value in ((lambda one: one.references[0], 1.0), (lambda one: "", 0.0)):
        scores = SUITE.score(examples, {one.id: Answer(one.id, text(one)) for one in examples})
        assert {one.values["accuracy"] for one in scores} == {value}


@pytest.mark.parametrize(
    ("task", "needles", "keys", "answers"),
    [
        ("niah_single_1", 1, 1, 1),
        ("niah_single_2", 1, 1, 1),
        ("niah_single_3", 1, 1, 1),
        ("niah_multikey_1", 4, 4, 1),
        ("niah_multikey_2", None, None, 1),
        ("niah_multikey_3", None, None, 1),
        ("niah_multivalue", 4, 1, 4),
        ("niah_multiquery", 4, 4, 4),
    ],
)
def test_the_needles_of_every_task(made, tokenizer, task, needles, keys, answers):
    for one in made(1024, task, count=6):
        found = NEEDLE.findall(text_of(one))
        if needles is None:  # needles are the haystack
            assert len(found) > 8
            assert len({key for _, key, _ in found}) == len(found)
        else:
            assert (len(found), len({key for _, key, _ in found})) == (needles, keys)
        # Values occur once each. No distractor has the answer.
        assert len({value for _, _, value in found}) == len(found)
        assert all(one.prompt.count(reference) == 1 for reference in one.references)
        assert len(one.references) == answers
        question = one.prompt.rpartition("\n")[2]
        asked = {value for _, key, value in found if f" {key}" in question}
        assert set(one.references) == asked
        # The depth and the distance are those of the needle.
        if answers == 1:
            (start,) = [m for m in NEEDLE.finditer(one.prompt) if m[3] == one.references[0]]
            assert one.distance == tokenizer.counts([one.prompt[start.end() :]])[0]
            assert one.depth == pytest.approx(start.start() / len(text_of(one)), abs=0.1)
        else:
            assert one.depth is one.distance is None


def test_the_wording_of_a_needle_task_is_the_published_one(made):
    (one,) = made(1024, "niah_single_3", count=1)
    assert one.prompt.startswith(
        "A special magic uuid is hidden within the following text. Make sure to memorize it. I will quiz you about the "
        "uuid afterwards.\n"
    )
    ((kind, key, value),) = NEEDLE.findall(text_of(one))
    assert kind == "uuids"
    assert one.prompt.endswith(
        f"\nWhat is the special magic uuid for {key} mentioned in the provided text? The special magic uuid for {key} "
        f"mentioned in the provided text is"
    )
    assert one.continuations == (f" {value}",)
    (four,) = made(1024, "niah_multiquery", count=1)
    assert four.prompt.startswith("Some special magic numbers are hidden within the following text.")
    a, b, c, d = (next(key for _, key, v in NEEDLE.findall(four.prompt) if v == value) for value in four.references)
    assert four.prompt.endswith(
        f"\nWhat are all the special magic numbers for {a}, {b}, {c}, and {d} mentioned in the provided text? The "
        f"special magic numbers for {a}, {b}, {c}, and {d} mentioned in the provided text are"
    )


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_variables_of_the_answer_are_those_with_the_value(made, tokenizer, length):
    for one in made(length, "vt", count=5):
        example, question = re.split(r"(?<=[A-Z]{3})\n\n(?=Memorize)", one.prompt)
        for text, letters in ((example, 3), (question, 5)):
            values: dict[str, str] = {}
            for name, value in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)", text, re.MULTILINE):
                values[name] = values.get(value, value)  # the chain stands in its order
            (asked,) = set(re.findall(r"assigned the value (\d{5})", text))
            assert len(values) == 5
            assert set(values.values()) == {asked}
            assert {len(name) for name in values} == {letters}
            if text is example:
                assert text.endswith(f"they are:  {' '.join(values)}")
            else:
                assert text.endswith(f"5 variables are assigned the value {asked}, they are: ")
                assert one.references == tuple(values)
                assert one.continuations == (" ".join(values),)
        solved = example[: example.rindex("they are: ") + len("they are: ")]
        assert tokenizer.count(solved) <= 500 < tokenizer.count(solved) + 30


@pytest.mark.parametrize(("length", "repeats", "other"), [(1024, 6, 1), (4096, 30, 3)])
def test_the_common_words_are_the_answer_and_one_example_is_solved(made, length, repeats, other):
    for one in made(length, "cwe", count=3):
        # lm-eval 0.4.13 has no solved example.
        _, example, question = one.prompt.split("Below is a numbered list of words.")
        for text, common, rare in (
            (example, *((3, 1) if length < 4096 else (10, 3))),
            (question, repeats, other),
        ):
            listed, _, end = text.partition("\nQuestion: What are the 10 most common words in the above list?")
            words = re.split(r"(?:^| )\d+\. ", listed.partition("\n")[2])[1:]
            counted = Counter(words)
            assert set(counted.values()) == {common, rare}
            top = {word for word, times in counted.items() if times == common}
            assert len(top) == 10
            assert end.startswith(" Answer: The top 10 words that appear most often in the list are:")
            answer = re.split(r" ?\d+\. ", end.partition("list are: ")[2].rstrip("\n"))[1:]
            assert text is question or set(answer) == top
        assert set(one.references) == top
        assert one.continuations[0] == " " + " ".join(f"{n}. {word}" for n, word in enumerate(one.references, 1))
        assert len(counted) > 40


def test_the_frequent_words_are_the_answer_in_their_order(made):
    for one in made(1024, "fwe", count=5) + made(4096, "fwe", count=2):
        coded = text_of(one).partition("most frequently appeared coded words. ")[2].split(" ")
        counted = Counter(coded)
        noise = counted.pop("...")
        assert tuple(word for word, _ in counted.most_common(3)) == one.references
        first, second, third, fourth = (times for _, times in counted.most_common(4))
        assert first > second > third > fourth
        # The zeta distribution with alpha 2: the ranks 2, 3 and 4 have 1/4, 1/9 and 1/16 of the noise's frequency.
        assert (noise / first, noise / second, noise / third) == pytest.approx((4, 9, 16), rel=0.12)
        assert all(re.fullmatch("[a-z]{6}", word) for word in counted)


def test_fewer_examples_are_the_first_of_more(made):
    more, fewer = made(1024, "niah_multikey_3", "fwe", count=6), made(1024, "niah_multikey_3", "fwe", count=2)
    assert [one for one in more if int(one.id.rpartition("/")[2]) < 2] == fewer
    other = made(1024, "niah_multikey_3", "fwe", count=2, seed=1)
    assert not {one.prompt for one in fewer} & {one.prompt for one in other}


def test_a_length_that_is_too_short_is_refused_with_the_numbers(made):
    with pytest.raises(
        InputError, match=r"ruler/vt: a length of 300 tokens is too short: .* room of the answer has 30"
    ):
        made(300, "vt")
    with pytest.raises(InputError, match=r"ruler/niah_single_1: a length of 128 tokens is too short"):
        made(128, "niah_single_1")


def test_an_unknown_task_is_named(made):
    with pytest.raises(InputError, match=r"no task 'niah_single1'; did you mean niah_single_1\?"):
        made(1024, "niah_single1")


def test_a_short_haystack_repeats_and_the_note_says_so(tokenizer, tmp_path):
    (tmp_path / "essay.txt").write_text("A short essay. It has two sentences.")
    request = Request(1024, 1, 0, tokenizer, RulerOptions(("niah_single_2",), tmp_path))
    prepared = SUITE.prepare(request)
    assert "so it repeats in prompts of 1024 tokens" in prepared.notes[-1]
    (one,) = prepared.examples
    assert one.prompt.count("two sentences.") > 50


def test_the_settings_name_the_haystack_and_the_words(tokenizer, tmp_path):
    def settings(*tasks, haystack=None):
        return SUITE.prepare(Request(1024, 1, 0, tokenizer, RulerOptions(tasks, haystack))).settings

    (tmp_path / "essay.txt").write_text("An essay.")
    ours = settings("niah_single_2")
    assert set(ours) == {"words", "haystack"}
    assert settings("niah_single_2", haystack=tmp_path)["haystack"] != ours["haystack"]
    assert settings("niah_single_1", haystack=tmp_path) == {"words": ours["words"]}  # no prose in this task


def test_the_score_has_the_cross_entropy_of_the_gold_answer(made):
    one, two, three = islice(made(1024, "niah_single_1"), 3)
    answers = {
        one.id: Answer(one.id, one.references[0], logprobs=(-6.0,), tokens=(4,), greedy=(False,)),
        two.id: Answer(two.id, logprobs=(-6.0,), tokens=(3,), greedy=(False,)),
    }
    scores = SUITE.score([one, two, three], answers)
    assert [score.values for score in scores] == [{"accuracy": 1.0, "cross_entropy": 1.5}, {"cross_entropy": 2.0}]
    assert (scores[0].id, scores[0].task, scores[0].length) == (one.id, "niah_single_1", 1024)
    assert (scores[0].depth, scores[0].distance) == (one.depth, one.distance)
