"""The suites by name. A suite makes examples and scores answers.

A further suite is one package in this folder with the function ``suite()``, one line in :data:`SUITES`, and its options
in :mod:`exact_titan.evaluation.options`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from exact_titan.errors import InputError, did_you_mean
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.scores import Metric, Score

SUITES = {
    "ruler": "exact_titan.evaluation.suites.ruler",
    "nolima": "exact_titan.evaluation.suites.nolima",
    "probe": "exact_titan.evaluation.suites.probe",
    "qa": "exact_titan.evaluation.suites.qa",
}
"""The package of every suite. A package is imported when its suite is used."""


@dataclass(frozen=True)
class Request:
    """The prompts that a suite is asked for.

    Attributes:
        length: context length in tokens, with the room of the answer. None: a suite without lengths.
        examples: number of examples of a task.
        seed: seed of the examples.
        tokenizer: counts tokens, and adds the template of the model.
        options: the suite's dataclass in :mod:`exact_titan.evaluation.options`.
    """

    length: int | None
    examples: int
    seed: int
    tokenizer: PromptTokenizer
    options: Any


@dataclass(frozen=True)
class Prepared:
    """The prompts that a suite has made.

    Attributes:
        examples: the examples. The suite may make them one by one.
        settings: everything beside the request that decides the prompts: values of options, digests of files.
        notes: sentences for the reader of a report, such as which haystack the prompts use.
    """

    examples: Iterable[Example]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Suite(Protocol):
    """A family of tasks.

    Attributes:
        name: key in :data:`SUITES`.
        version: version of the rules. A change that changes a prompt or a score raises the version.
        has_lengths: whether the suite makes prompts of a given length.
        metrics: the metrics of a question. The first metric is the main one.
    """

    name: str
    version: int
    has_lengths: bool
    metrics: tuple[Metric, ...]

    def tasks(self, options: Any) -> tuple[str, ...]:
        """Return the names of the tasks under these options, in the order of tables."""

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of a request. Every prompt has at most ``length - room`` tokens.

        Raises:
            InputError: before the first prompt, if an option or a file is wrong or the length is too short.
        """

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the scores of the questions whose examples all have an answer. The result depends on nothing else."""


def find_suite(name: str) -> Suite:
    """Return a suite.

    Raises:
        InputError: if there is no such suite.
    """
    if name not in SUITES:
        raise InputError(f"there is no suite {name!r}{did_you_mean(name, SUITES)}; the suites are {', '.join(SUITES)}")
    return import_module(SUITES[name]).suite()
