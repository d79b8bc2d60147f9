"""The prompts of the suite, and the scores of models whose answers are known."""

from collections import defaultdict

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.filling import PromptDoesNotFit
from exact_titan.evaluation.options import NolimaOptions
from exact_titan.evaluation.suites import Request, find_suite
from exact_titan.evaluation.suites.nolima.prompts import ROOM
from exact_titan.evaluation.suites.nolima.tasks import TASKS
from tests.evaluation.suites.nolima.folders import NAMES, entry, write_folder
from tests.evaluation.tokenizers import letters_tokenizer

LENGTHS = (512, 1024)
SUITE = find_suite("nolima")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    choices = {"questions": entry()["questions"] | {"onehop": "Who has seen {2}: Ada, Bea, {CHAR}?"}}
    return write_folder(
        tmp_path_factory.mktemp("nolima"),
        entry(choices=["Ada", "Bea", "{CHAR}"]),
        entry(id="0102", choices=["{CHAR}", "Cleo"], needle="Of course {1} is where {CHAR} sings.", **choices),
    )


def prepared(tokenizer, folder, *, length=512, examples=20, seed=0, tasks=("base",), depths=5):
    options = NolimaOptions(folder=folder, tasks=tasks, depths=depths)
    return SUITE.prepare(Request(length, examples, seed, tokenizer, options))


@pytest.fixture(scope="module")
def examples(tokenizer, folder):
    """All tasks at two lengths."""
    return [
        example
        for length in LENGTHS
        for example in prepared(tokenizer, folder, length=length, tasks=tuple(TASKS)).examples
    ]


def test_every_prompt_has_its_length(examples, tokenizer):
    assert len(examples) == len(LENGTHS) * len(TASKS) * 20
    for one in examples:
        assert one.tokens == tokenizer.count(one.prompt)
        assert 0.98 * (one.length - one.room) <= one.tokens <= one.length - one.room
        assert one.room == ROOM == 192
    assert len({one.id for one in examples}) == len(examples)


def test_a_model_that_copies_the_answer_has_100_and_a_silent_one_0_at_every_length_and_depth(examples):
    for text_of, right in ((lambda one: f"It is {one.references[0]}.", 1.0), (lambda one: "", 0.0)):
        answers = {one.id: Answer(one.id, text_of(one)) for one in examples}
        cells = defaultdict(list)
        for score in SUITE.score(examples, answers):
            cells[score.task, score.length, score.depth].append(score.values["accuracy"])
        assert {cell[:2] for cell in cells} == {(task, length) for task in TASKS for length in LENGTHS}
        assert {cell[2] for cell in cells} == {0.0, 0.25, 0.5, 0.75, 1.0}
        assert {value for values in cells.values() for value in values} == {right}


def test_an_example_without_answer_has_no_score(examples):
    assert [one.id for one in SUITE.score(examples, {examples[3].id: Answer(examples[3].id, "x")})] == [examples[3].id]


def test_only_the_name_of_the_needle_is_the_answer(examples):
    for one in examples:
        (name,) = one.references
        assert name in NAMES
        assert name in one.meta["needle"]
        assert one.prompt.count(one.meta["needle"]) == 1
        haystack = one.prompt.replace(one.meta["needle"], "").split("\n\nQ:")[0]
        assert not any(other in haystack for other in NAMES)
        assert one.continuations[one.gold].strip() == name
    assert {one.references[0] for one in examples} == set(NAMES)


def test_the_needle_stands_at_the_end_of_a_line_at_its_depth(examples, tokenizer):
    for one in examples:
        start = one.prompt.index(one.meta["needle"])
        end = start + len(one.meta["needle"])
        assert one.prompt[end] == "\n"
        assert one.prompt[start - 1] == " "
        assert one.depth == 0 or one.prompt[start - 2] == "."
        assert one.distance == one.tokens - tokenizer.count(one.prompt[:end])
        haystack = one.prompt.removeprefix("Book:\n\n").split("\n\nQ:")[0]
        before = haystack.index(one.meta["needle"])
        depth = tokenizer.count(haystack[:before]) / tokenizer.count(haystack.replace(one.meta["needle"], ""))
        assert depth == pytest.approx(one.depth, abs=0.09 if one.length == 512 else 0.03)


def test_the_distractor_is_in_the_prompts_of_its_task_alone(examples, tokenizer):
    for one in examples:
        if one.task != "distractor":
            assert one.meta["distractor"] is None
            assert "A card showed" not in one.prompt
            continue
        assert one.prompt.count(f" {one.meta['distractor']}\n") == 1
        assert not any(name in one.meta["distractor"] for name in NAMES)
        needle, other = one.prompt.index(one.meta["needle"]), one.prompt.index(one.meta["distractor"])
        between = one.prompt[min(needle, other) : max(needle, other)]
        assert tokenizer.count(between) >= (0.2 * 700 if one.length == 1024 else 13)


def test_the_choices_are_the_continuations_of_the_multiple_choice_task(examples):
    for one in examples:
        if one.task != "multiple_choice":
            assert len(one.continuations) == 1
            assert not one.meta["choices"]
        else:
            assert len(one.continuations) in (2, 3)
            assert one.meta["choices"]
            assert all(choice.startswith(" ") for choice in one.continuations)
    asked = [one for one in examples if one.task == "multiple_choice"]
    for others, accuracy in ((-2.0, 1.0), (-1.0, 0.0)):
        answers = {}
        for one in asked:
            logprobs = [others] * len(one.continuations)
            logprobs[one.gold] = -1.5
            answers[one.id] = Answer(one.id, logprobs=tuple(logprobs), tokens=(1,) * len(logprobs))
        assert {score.values["accuracy_choice"] for score in SUITE.score(asked, answers)} == {accuracy}


def test_the_prompts_of_a_place_share_the_text_before_the_needle(examples):
    groups = defaultdict(list)
    for one in examples:
        if one.length == 1024 and one.task == "base":
            groups[one.prefix].append(one)
    assert sorted(map(len, groups.values())) == [4] * 5
    for name, group in groups.items():
        cut = {one.prompt[: one.prompt.index(one.meta["needle"])] for one in group}
        assert len(cut) == 1
        assert {(one.meta["book"], f"{one.depth:.3f}") for one in group} == {tuple(name.split("/")[:2])}


def test_an_example_depends_on_the_seed_and_its_number_alone(tokenizer, folder, examples):
    def first(**changes):
        return list(prepared(tokenizer, folder, **changes).examples)

    whole = [one for one in examples if one.length == 512 and one.task == "base"]
    assert first(examples=7) == whole[:7]
    assert first(examples=7, seed=1) != whole[:7]
    longer = [one for one in examples if one.length == 1024 and one.task == "base"]
    assert [(one.meta["needle"], one.depth, one.meta["book"]) for one in whole] == [
        (one.meta["needle"], one.depth, one.meta["book"]) for one in longer
    ]


def test_lines_with_a_name_are_left_out_and_counted_in_a_note(tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f")
    book = folder / "haystack" / "rand_shuffle" / "rand_book_1.txt"
    book.write_text("Once Zora came.\n" * 3 + book.read_text())
    result = prepared(tokenizer, folder)
    assert result.notes[1] == "NoLiMa, base: 3 lines of the books with an answer of the needle set are left out."
    assert not any("Once" in one.prompt for one in result.examples)


def test_without_the_field_choices_the_note_says_so(tokenizer, tmp_path):
    result = prepared(tokenizer, write_folder(tmp_path / "f"), tasks=("multiple_choice",))
    assert "no field choices" in result.notes[1]
    assert {len(one.continuations) for one in result.examples} == {1}


def test_the_settings_change_with_the_files(tokenizer, tmp_path):
    settings = [prepared(tokenizer, write_folder(tmp_path / "a")).settings]
    settings.append(prepared(tokenizer, write_folder(tmp_path / "b", entry(id="7"))).settings)
    settings.append(prepared(tokenizer, write_folder(tmp_path / "c", lines=401)).settings)
    settings.append(prepared(tokenizer, write_folder(tmp_path / "d"), depths=6).settings)
    assert len({str(one) for one in settings}) == 4
    assert settings[0] == prepared(tokenizer, write_folder(tmp_path / "e")).settings


def test_a_clone_has_its_data_in_a_folder(tokenizer, tmp_path):
    clone = tmp_path / "clone"
    write_folder(clone / "data", entry(task_template=None))
    with pytest.raises(InputError, match="task_template is missing: name a clone"):
        prepared(tokenizer, clone)
    (clone / "evaluation").mkdir()
    (clone / "evaluation" / "run_tests.py").write_text("DEFAULT_TASK_TEMPLATE = 'Text: {haystack} Q: {question}'")
    assert next(iter(prepared(tokenizer, clone).examples)).prompt.startswith("Text: ")


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ({"length": 256}, r"nolima/base: a length of 256 tokens is too short: .* name a length of \d+ or more"),
        ({"length": 16384}, "nolima/base at 16384 tokens: the book rand_book_1 has .* name a folder with longer books"),
        ({"examples": 41}, r"nolima/base has 40 examples \(4 questions, 2 books, 5 depths\), and 41 are requested"),
        (
            {"tasks": ("bass",)},
            r"--nolima.tasks: there is no task 'bass'; did you mean base\?; the tasks are base, onehop",
        ),
        ({"tasks": ()}, "--nolima.tasks names no task"),
        ({"depths": 1}, "--nolima.depths 1: name 2 depths or more"),
    ],
)
def test_a_wrong_request_is_refused_before_the_first_prompt(tokenizer, tmp_path, request_, fault):
    with pytest.raises(InputError, match=fault):
        prepared(tokenizer, write_folder(tmp_path / "f"), **request_)


def test_the_named_length_is_long_enough(tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f")
    with pytest.raises(PromptDoesNotFit) as caught:
        prepared(tokenizer, folder, length=256)
    length = int(str(caught.value).split("name a length of ")[1].split()[0])
    result = list(prepared(tokenizer, folder, length=length).examples)
    assert min(one.tokens for one in result) >= 0.98 * (length - ROOM)
    with pytest.raises(PromptDoesNotFit):
        prepared(tokenizer, folder, length=length - 1)


def test_a_wrong_folder_is_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="has no folder needlesets and no folder data/needlesets"):
        prepared(tokenizer, tmp_path)
    folder = write_folder(tmp_path / "f", entry(needle="Then </s> {CHAR} left {1}."))
    with pytest.raises(InputError, match="the question 0101_T1_onehop spells the special token </s>"):
        prepared(tokenizer, folder)
    folder = write_folder(tmp_path / "g", books=0)
    with pytest.raises(InputError, match=r"rand_shuffle: no such folder"):
        prepared(tokenizer, folder)
