"""A small evaluation on the disk: a suite of two tasks, its prompts, and answers of a model."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from exact_titan.evaluation.answers import Answer, AnswersHeader
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.model_folder import EvaluatedModel
from exact_titan.evaluation.prompt_sets import PromptRecipe, read_prompts, write_prompts
from exact_titan.evaluation.record_files import RecordAppender
from exact_titan.evaluation.scores import Metric, Score
from exact_titan.evaluation.suites import SUITES


class WordSuite:
    """The answer must hold the first reference. The suite is careless: it looks for the reference in the prompt too."""

    name = "words"
    version = 3
    has_lengths = True
    metrics = (
        Metric("accuracy", "accuracy, %", True, True),
        Metric("cross_entropy", "cross-entropy, nats", False, False),
    )

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        scores = []
        for example in examples:
            if answer := answers.get(example.id):
                found = example.references[0] in example.prompt + (answer.text or "")
                values = {"accuracy": float(found)}
                if answer.logprobs:
                    values["cross_entropy"] = -answer.logprobs[0] / answer.tokens[0]
                scores.append(Score(example.id, example.task, example.length, None, None, values))
        return scores


def use_word_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``words`` a suite of the package."""
    module = ModuleType("word_suite")
    module.suite = WordSuite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "word_suite", module)
    monkeypatch.setitem(SUITES, "words", "word_suite")


def write_evaluation(out: Path, answers: Sequence[Answer], *, version: int = 3, length: int = 64) -> Path:
    """Write the prompts and the answers of the model ``m``. Return the prompt set."""
    recipe = PromptRecipe("words", version, ("near", "far"), length, 2, 0, "0" * 64, "plain", {})
    example = Example("", "words", "", "The word is A1. Which word?", 9, 4, length, ("A1",), (" A1",))
    examples = [
        replace(example, id=f"words/{task}/{length}/{place}", task=task)
        for task in recipe.tasks
        for place in range(recipe.examples)
    ]
    prompts = write_prompts(out / "prompts", recipe, examples, ["A note."])
    model = EvaluatedModel("m", "run", 64, 64, 7, "w", "0" * 64)
    model.write(out / "models" / "m")
    header = AnswersHeader(read_prompts(prompts).sha256, "w", {"name": "stub"})
    with RecordAppender(out / "models" / "m" / "answers" / prompts.name, header.as_json()) as file:
        for answer in answers:
            file.append(answer.as_json())
    return prompts
