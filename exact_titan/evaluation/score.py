"""Scores of one model: the third step of an evaluation.

The scores of a prompt set are a pure function of the prompts and the answers. Scoring again gives the same bytes.

A suite gets its examples without their prompts, and an answer must not hold its prompt. The right answer stands in the
prompt of a retrieval task, so a comparison with the prompt finds the right answer always.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import ANSWERS_FOLDER, Answer, read_answers, read_answers_header
from exact_titan.evaluation.prompt_sets import PROMPTS_FOLDER, PromptSet, read_prompts
from exact_titan.evaluation.scores import SCORES_FOLDER, write_scores
from exact_titan.evaluation.suites import find_suite


def answered_prompts(folder: Path) -> list[Path]:
    """Return the prompt sets that a model has answers to, in the order of their names.

    Args:
        folder: the folder of the model, ``OUT/models/NAME``. The prompt sets are in ``OUT/prompts``.

    Raises:
        InputError: if the model has no answers, or if a prompt set is missing.
    """
    answers = sorted((folder / ANSWERS_FOLDER).glob("*.jsonl"))
    if not answers:
        raise InputError(f"{folder / ANSWERS_FOLDER} has no answers: make the answers with `exact-titan eval generate`")
    prompts = [folder.resolve().parent.parent / PROMPTS_FOLDER / file.name for file in answers]
    for file in prompts:
        if not file.is_file():
            raise InputError(
                f"{file}: no such file: {folder / ANSWERS_FOLDER} has answers to this prompt set; put the prompt set "
                f"back, or move the answers to another folder"
            )
    return prompts


def score(folder: Path, prompts: Sequence[Path]) -> list[Path]:
    """Score the answers of a model, and write ``folder/scores/<name of the prompt set>`` for every prompt set.

    All files are read and scored before the first file is written. One line names every prompt set with examples that
    have no answer. The questions of such examples have no score.

    Args:
        folder: the folder of the model.
        prompts: the prompt sets.

    Returns:
        The files of scores, in the order of ``prompts``.

    Raises:
        InputError: if answers are missing or belong to other prompts, if the prompts are from another version of their
            suite, or if an answer begins with its prompt.
    """
    read = []
    for file in prompts:
        asked = read_prompts(file)
        answers_file = folder / ANSWERS_FOLDER / file.name
        suite = find_suite(asked.recipe.suite)
        if asked.recipe.version != suite.version:
            raise InputError(
                f"{file} has prompts of version {asked.recipe.version} of the suite {suite.name}, and this "
                f"installation scores version {suite.version}: make prompts and answers again"
            )
        answers = read_answers(answers_file, asked)
        _refuse_prompts_in(answers, asked, answers_file)
        unseen = [replace(example, prompt="") for example in asked.examples]
        read.append((asked, suite.metrics, read_answers_header(answers_file), suite.score(unseen, answers), answers))
    files = []
    for asked, metrics, header, scores, answers in read:
        missing = len(asked.examples) - len(answers)
        if missing:
            print(
                f"{folder.name}: {asked.file.name}: {missing:,} of {len(asked.examples):,} examples have no answer, "
                f"and their questions no score: `exact-titan eval generate` makes the missing answers",
                flush=True,
            )
        files.append(folder / SCORES_FOLDER / asked.file.name)
        write_scores(files[-1], asked, header, scores, metrics=metrics, missing=missing)
    return files


def _refuse_prompts_in(answers: Mapping[str, Answer], asked: PromptSet, file: Path) -> None:
    """Refuse an answer that begins with its prompt, such as the answer of a server that echoes the prompt.

    A prompt with no more tokens than the room can be a true answer.

    Raises:
        InputError: naming the answer.
    """
    for example in asked.examples:
        text = answers[example.id].text if example.id in answers else None
        if text and example.tokens > example.room and text.startswith(example.prompt):
            raise InputError(
                f"{file}: the answer to {example.id} begins with its prompt: the engine returned the prompt as a part "
                f"of the answer; switch the echo off, move the file to another folder, and make the answers again"
            )
