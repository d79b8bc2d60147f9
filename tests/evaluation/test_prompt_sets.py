from dataclasses import replace
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer, AnswersHeader, read_answers
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_sets import PromptRecipe, read_prompts, write_prompts
from exact_titan.evaluation.record_files import RecordAppender, write_records
from exact_titan.evaluation.scores import Metric, Score, read_scores, write_scores

RECIPE = PromptRecipe("ruler", 1, ("vt", "cwe"), 1024, 2, 0, "0" * 64, "plain", {"haystack": "abc"})
EXAMPLES = [
    Example("ruler/vt/1024/0", "ruler", "vt", "What?", 3, 8, 1024, ("A", "B"), (" A B",), stop=("\n",), depth=0.5),
    Example("ruler/cwe/1024/0", "ruler", "cwe", "Ünd?", 3, 8, 1024, ("C",), (" C",), meta={"pair": [1, 2]}),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = write_prompts(tmp_path, RECIPE, EXAMPLES, ["A note."])
    read = read_prompts(file)
    assert (read.recipe, read.notes, list(read.examples)) == (RECIPE, ("A note.",), EXAMPLES)
    assert file.name == f"ruler-1024-{RECIPE.key}.jsonl"
    again = write_prompts(tmp_path / "again", RECIPE, EXAMPLES, ["A note."])
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"tasks": ("vt",)},
        {"length": 2048},
        {"examples": 3},
        {"seed": 1},
        {"tokenizer_sha256": "1" * 64},
        {"template": "chat"},
        {"settings": {"haystack": "abd"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_decides_the_prompts_is_in_the_key(change: dict) -> None:
    assert replace(RECIPE, **change).key != RECIPE.key


def test_prompts_that_are_not_complete_are_refused(tmp_path: Path) -> None:
    file = write_prompts(tmp_path, RECIPE, [EXAMPLES[0], EXAMPLES[0]])
    with pytest.raises(InputError, match="an id occurs twice"):
        read_prompts(file)
    lines = write_prompts(tmp_path, RECIPE, EXAMPLES).read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1].replace('"task"', '"tusk"')]) + "\n")
    with pytest.raises(InputError, match="line 2: key 'tusk' is unknown"):
        read_prompts(file)
    file.write_text(lines[0] + '\n{"id": "a"}\n')
    with pytest.raises(InputError, match="line 2: key 'suite' is missing"):
        read_prompts(file)
    write_records(file, {"kind": "answers"}, [])
    with pytest.raises(InputError, match="is not a prompt set of format 1"):
        read_prompts(file)


def test_answers_belong_to_their_prompts(tmp_path: Path) -> None:
    prompts = read_prompts(write_prompts(tmp_path, RECIPE, EXAMPLES))
    file = tmp_path / "answers.jsonl"
    answer = Answer("ruler/vt/1024/0", " A", 2, "stop", (-1.5,), (2,), (False,))
    with RecordAppender(file, AnswersHeader(prompts.sha256, "w", {"name": "stub"}).as_json()) as out:
        out.append(answer.as_json())
    assert read_answers(file, prompts) == {answer.id: answer}
    other = read_prompts(write_prompts(tmp_path, replace(RECIPE, seed=1), EXAMPLES))
    with pytest.raises(InputError, match="has the answers to another prompt set than"):
        read_answers(file, other)
    with RecordAppender(file, {}) as out:
        out.append(Answer("ruler/none/1024/0").as_json())
    with pytest.raises(InputError, match="has no example 'ruler/none/1024/0'"):
        read_answers(file, prompts)


def test_scores_are_read_as_written(tmp_path: Path) -> None:
    prompts = read_prompts(write_prompts(tmp_path, RECIPE, EXAMPLES, ["A note."]))
    header = AnswersHeader(prompts.sha256, "w", {"name": "stub"})
    metrics = (Metric("accuracy", "accuracy, %", True, True),)
    scores = (Score("ruler/vt/1024/0", "vt", 1024, 0.5, None, {"accuracy": 1.0}),)
    write_scores(tmp_path / "s" / "x.jsonl", prompts, header, scores, metrics=metrics, missing=1)
    read = read_scores(tmp_path / "s" / "x.jsonl")
    assert (read.recipe, read.notes, read.answers) == (RECIPE, ("A note.",), header)
    assert (read.metrics, read.scores, read.missing) == (metrics, scores, 1)
    with pytest.raises(InputError, match="is not a file of scores of format 1"):
        read_scores(prompts.file)
