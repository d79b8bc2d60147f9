import subprocess
import sys
from pathlib import Path

import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.score import answered_prompts, score
from exact_titan.evaluation.scores import read_scores
from tests.evaluation.small_evaluation import use_word_suite, write_evaluation

ANSWERS = [
    Answer("words/near/64/0", " A1.", 2, "stop", (-1.0,), (2,), (False,)),
    Answer("words/near/64/1", "", 0, "stop", (-4.0,), (2,), (False,)),
    Answer("words/far/64/0", "B2", 2, "stop"),
]


@pytest.fixture(autouse=True)
def _suite(monkeypatch: pytest.MonkeyPatch) -> None:
    use_word_suite(monkeypatch)


def test_golds_are_matched_in_the_answer_only(tmp_path: Path) -> None:
    """The prompt has the right answer, and the suite would find it there."""
    prompts = write_evaluation(tmp_path, ANSWERS)
    (file,) = score(tmp_path / "models" / "m", [prompts])
    assert [one.values["accuracy"] for one in read_scores(file).scores] == [1.0, 0.0, 0.0]


def test_an_answer_that_begins_with_its_prompt_is_refused(tmp_path: Path) -> None:
    echo = Answer("words/near/64/0", "The word is A1. Which word? B2", 2, "length")
    prompts = write_evaluation(tmp_path, [echo])
    with pytest.raises(InputError, match="the answer to words/near/64/0 begins with its prompt"):
        score(tmp_path / "models" / "m", [prompts])
    assert not (tmp_path / "models" / "m" / "scores").exists()


def test_missing_answers_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = write_evaluation(tmp_path, ANSWERS)
    (file,) = score(tmp_path / "models" / "m", [prompts])
    assert f"m: {prompts.name}: 1 of 4 examples have no answer" in capsys.readouterr().out
    read = read_scores(file)
    assert (read.missing, len(read.scores), read.notes) == (1, 3, ("A note.",))


def test_scoring_again_gives_the_same_bytes(tmp_path: Path) -> None:
    prompts = write_evaluation(tmp_path, ANSWERS)
    (file,) = score(tmp_path / "models" / "m", [prompts])
    before = file.read_bytes()
    assert score(tmp_path / "models" / "m", [prompts]) == [file]
    assert file.read_bytes() == before


def test_the_command_prints_every_task_and_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_evaluation(tmp_path, ANSWERS)
    longer = [Answer(one.id.replace("64", "128"), "A1", 2, "stop", (-3.0,), (2,), (False,)) for one in ANSWERS]
    write_evaluation(tmp_path, longer, length=128)
    assert main(["eval", "score", str(tmp_path / "models" / "m")]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert [" ".join(line.split()) for line in table if line] == [
        "words length n accuracy, % cross-entropy, nats",
        "near 64 2 50.0 1.250",
        "far 64 1 0.0 -",
        "mean of tasks 64 3 25.0 -",
        "near 128 2 100.0 1.500",
        "far 128 1 100.0 1.500",
        "mean of tasks 128 3 100.0 1.500",
        "mean of sets 6 62.5 -",
    ]


@pytest.mark.parametrize("spoil", ["no answers", "no prompts", "no model", "old version"])
def test_wrong_input_is_one_line(spoil: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = write_evaluation(tmp_path, ANSWERS, version=2 if spoil == "old version" else 3)
    folder = tmp_path / "models" / "m"
    if spoil == "no answers":
        (folder / "answers" / prompts.name).unlink()
    elif spoil == "no prompts":
        prompts.unlink()
    elif spoil == "no model":
        (folder / "model.json").unlink()
    assert main(["eval", "score", str(folder)]) == 2
    said = capsys.readouterr().err
    assert {
        "no answers": "has no answers: make the answers with `exact-titan eval generate`",
        "no prompts": f"{prompts.name}: no such file",
        "no model": "has no model.json",
        "old version": "has prompts of version 2 of the suite words, and this installation scores version 3",
    }[spoil] in said
    assert said.count("\n") == 1
    assert not (folder / "scores").exists()


def test_answers_of_another_prompt_set_are_refused(tmp_path: Path) -> None:
    prompts = write_evaluation(tmp_path, ANSWERS)
    prompts.write_text(prompts.read_text().replace("Which", "What"))
    with pytest.raises(InputError, match="has the answers to another prompt set"):
        score(tmp_path / "models" / "m", answered_prompts(tmp_path / "models" / "m"))


def test_scoring_needs_no_torch() -> None:
    code = "import sys, exact_titan.evaluation.score, exact_titan.reports.scores; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
