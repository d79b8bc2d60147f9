"""The answers of one model to one prompt set, in an append-only JSONL file.

The file ``<model folder>/answers/<name of the prompt set>`` has one record for every answered example. The header names
the prompt set by its digest, the weights and the engine with all settings that can change an answer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.examples import Example, from_record
from exact_titan.evaluation.prompt_sets import PromptSet
from exact_titan.evaluation.record_files import read_header, read_records

FORMAT = 1
ANSWERS_FOLDER = "answers"


Likelihood = tuple[float, int, bool]
"""Log-likelihood of a continuation in nats, its number of tokens, and whether each token is the most likely one."""


@dataclass(frozen=True)
class Answer:
    """What a model says to an example.

    Attributes:
        id: id of the example.
        text: the generated text, without the stop text and without special tokens. None: no generation.
        generated: number of generated tokens.
        finish: ``stop`` (end token or stop text), ``length`` (the room is full), or empty (no generation).
        logprobs: log-likelihood of every continuation of the example, in nats, summed over its tokens. Empty: the
            engine measures no likelihood.
        tokens: number of tokens of every continuation.
        greedy: for every continuation, whether each of its tokens is the most likely one.
    """

    id: str
    text: str | None = None
    generated: int = 0
    finish: str = ""
    logprobs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: tuple[bool, ...] = ()

    @classmethod
    def of(
        cls,
        example: Example,
        text: str | None,
        generated: int,
        finish: str,
        measured: Sequence[Likelihood],
    ) -> "Answer":
        """Return the answer to an example.

        Args:
            example: the example.
            text, generated, finish: the generation, as in the attributes.
            measured: the likelihood of every continuation. Empty: the engine measures no likelihood.
        """
        logprobs, tokens, greedy = zip(*measured, strict=True) if measured else ((), (), ())
        return cls(example.id, text, generated, finish, logprobs, tokens, greedy)

    def as_json(self) -> dict[str, Any]:
        """Return the answer as a record."""
        return asdict(self)


@dataclass(frozen=True)
class AnswersHeader:
    """Identity of the answers.

    Attributes:
        prompts_sha256: digest of the prompt set's file.
        weights: digest of the model's weights (:func:`exact_titan.runs.weights_digest.weights_digest`), or the URL and
            the model name of a server.
        engine: name, version and all settings of the engine that can change an answer.
    """

    prompts_sha256: str
    weights: str
    engine: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the header as a record."""
        return {"format": FORMAT, "kind": "answers", **asdict(self)}


def read_answers_header(file: Path) -> AnswersHeader:
    """Read the header of a file of answers.

    Raises:
        InputError: if the file is not a file of answers.
    """
    header = read_header(file)
    if header.pop("kind", None) != "answers" or header.pop("format", None) != FORMAT:
        raise InputError(
            f"{file} is not a file of answers of format {FORMAT}: make it with `exact-titan eval generate`"
        )
    return from_record(AnswersHeader, header, str(file))


def read_answers(file: Path, prompts: PromptSet) -> dict[str, Answer]:
    """Read the answers to a prompt set, by the ids of the examples.

    An incomplete last line is passed over.

    Raises:
        InputError: if the answers belong to another prompt set, or if an answer names no example of the set.
    """
    header = read_answers_header(file)
    if header.prompts_sha256 != prompts.sha256:
        raise InputError(
            f"{file} has the answers to another prompt set than {prompts.file}: name another output folder, or move "
            f"the answers to another folder"
        )
    known = {one.id for one in prompts.examples}
    answers: dict[str, Answer] = {}
    for number, record in enumerate(read_records(file, incomplete_end=True), start=2):
        answer = from_record(Answer, record, f"{file}: line {number}")
        if answer.id not in known:
            raise InputError(f"{file}: line {number}: {prompts.file} has no example {answer.id!r}")
        answers[answer.id] = answer
    return answers
