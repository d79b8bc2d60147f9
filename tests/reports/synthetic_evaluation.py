"""Score files of models that answer with given probabilities, written by the package's own writer."""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exact_titan.evaluation.answers import AnswersHeader
from exact_titan.evaluation.model_folder import EvaluatedModel
from exact_titan.evaluation.prompt_sets import PromptRecipe, PromptSet
from exact_titan.evaluation.scores import Metric, Score, write_scores

ACCURACY = Metric("accuracy", "accuracy, %", True, True)
CROSS_ENTROPY = Metric("cross_entropy", "cross-entropy, nats/token", False, False)
MARGINS = (
    Metric("context_margin", "context margin, nats", True, False),
    Metric("accuracy", "right answer first, %", True, True),
)
TOKENIZER = "a" * 64
QA_TASKS = ("mmlu", "arc_challenge", "hellaswag", "winogrande", "piqa", "gsm8k")

Right = Callable[[str, int | None], float]
"""Probability of a right answer, by task and length."""


def recipe(suite: str, tasks: Sequence[str], length: int | None, examples: int, **changed: Any) -> PromptRecipe:
    settings = {"haystack": "f" * 64}
    fields = {"version": 1, "seed": 0, "tokenizer_sha256": TOKENIZER, "template": "plain", "settings": settings}
    return PromptRecipe(suite=suite, tasks=tuple(tasks), length=length, examples=examples, **(fields | changed))


def write_model(folder: Path, *, window: int | None = 4096, weights: str = "", **changed: Any) -> Path:
    """Write ``model.json``. Return the folder."""
    fields = {"source": f"runs/{folder.name}", "positions": 16384, "step": 600, "tokenizer_sha256": TOKENIZER}
    weights = weights or f"{zlib.crc32(folder.name.encode()):064x}"
    EvaluatedModel(name=folder.name, window=window, weights=weights, **(fields | changed)).write(folder)
    return folder


def write_set(
    folder: Path,
    made: PromptRecipe,
    metrics: tuple[Metric, ...],
    scores: Sequence[Score],
    *,
    engine: dict[str, Any] | None = None,
    missing: int = 0,
    notes: tuple[str, ...] = ("The haystack is the package's chapters.",),
) -> None:
    """Write one file of scores."""
    header = AnswersHeader("p" * 64, "w", engine or {"name": "transformers", "version": "5.0", "dtype": "float32"})
    prompts = PromptSet(made, notes, (), "p" * 64, folder)
    write_scores(folder / "scores" / made.file_name, prompts, header, scores, metrics=metrics, missing=missing)


def answers(made: PromptRecipe, model: str, right: Right) -> Iterator[Score]:
    """Yield scores. Models share the luck of a question, so that their answers are correlated."""
    for task in made.tasks:
        for k in range(made.examples):
            name = f"{made.suite}/{task}/{made.length}/{k}"
            shared, own = random.Random(name), random.Random(f"{model}/{name}")
            luck = 0.8 * shared.random() + 0.2 * own.random()
            probability = right(task, made.length)
            values = {"accuracy": float(luck < probability), "cross_entropy": 3 - 2 * probability + luck}
            yield Score(name, task, made.length, 0.5, 100, values)


def write_suite(
    folder: Path,
    suite: str,
    tasks: Sequence[str],
    lengths: Sequence[int | None],
    right: Right,
    *,
    examples: int = 20,
    engine: dict[str, Any] | None = None,
    **changed: Any,
) -> None:
    """Write the scores of a suite, one file a length."""
    for length in lengths:
        made = recipe(suite, tasks, length, examples, **changed)
        write_set(folder, made, (ACCURACY, CROSS_ENTROPY), list(answers(made, folder.name, right)), engine=engine)


def write_probe(folder: Path, lengths: Sequence[int], margin: Callable[[int, int], float], examples: int = 12) -> None:
    """Write the scores of an evidence probe with the distances 128, 256, … below the length."""
    for length in lengths:
        made = recipe("probe", ("field", "place"), length, examples)
        scores = []
        distance = 128
        while distance < length:
            for task in made.tasks:
                for k in range(examples):
                    name = f"probe/{task}/{length}/{k}/{distance}"
                    value = margin(distance, length) + random.Random(f"{folder.name}/{name}").gauss(0, 0.4)
                    values = {"context_margin": value, "accuracy": float(value > 0)}
                    scores.append(Score(name, task, length, 0.5, distance + k % 3, values))
            distance *= 2
        write_set(folder, made, MARGINS, scores)


def write_evaluation(out: Path, gains: dict[str, float], *, examples: int = 20, window: int = 4096) -> list[Path]:
    """Write an evaluation with all suites: one model for every gain of the probability of a right answer."""
    lengths = [window // 2, window, 2 * window]
    folders = []
    for name, gain in gains.items():
        folder = write_model(out / "models" / name, window=window)

        def right(task: str, length: int | None, gain: float = gain) -> float:
            far = 0 if length is None else length / lengths[-1]
            return 0.8 - 0.6 * far + gain * (0.5 + far)

        write_suite(folder, "ruler", ("niah_single_1", "vt", "cwe"), lengths, right, examples=examples)
        write_suite(folder, "nolima", ("base", "hard"), lengths, right, examples=examples)
        write_suite(folder, "qa", QA_TASKS, [None], lambda task, length: 0.5, examples=examples)
        write_probe(folder, lengths, lambda distance, length, gain=gain: (1 + 4 * gain) * 3000 / (1000 + distance))
        folders.append(folder)
    return folders
