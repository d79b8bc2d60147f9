"""The engines by name. An engine answers examples: greedy generation and log-likelihoods.

A further engine is one module in this folder with the function ``engine(folder, options)``, one line in
:data:`ENGINES`, and its options in :mod:`exact_titan.evaluation.engine_options`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.examples import Example

ENGINES = {
    "transformers": "exact_titan.evaluation.engines.transformers",
    "vllm": "exact_titan.evaluation.engines.vllm",
    "server": "exact_titan.evaluation.engines.server",
}
"""The module of every engine. A module is imported when its engine is used."""


@dataclass(frozen=True)
class Speed:
    """The measured speed of an engine, for the estimate before a generation.

    Attributes:
        prefill: tokens of prompts per second.
        decode: generated tokens per second, over all prompts of a batch.
    """

    prefill: float
    decode: float


class Engine(Protocol):
    """A way to run a model.

    Attributes:
        settings: name, version and all settings that can change an answer, for the header of the answers.
        batch: number of examples of one call of :meth:`answer`.
        by_length: whether the examples of a call should have like lengths.
        chunk: the engine computes first tokens that prompts share once, in multiples of this number.
    """

    settings: dict[str, Any]
    batch: int
    by_length: bool
    chunk: int

    def answer(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Yield the answer of every example, in any order, each as soon as it is complete.

        Generation is greedy. The answer of an example does not depend on earlier calls, so that a resumed generation
        gives the same records.
        """

    def close(self) -> None:
        """Free the memory of the model. The engine can be used again."""

    def measure(self) -> Speed | None:
        """Return the speed, after a short measurement. None: the engine cannot be measured before its first answer."""


def make_engine(folder: Path, options: EngineOptions) -> Engine:
    """Return the engine of the options for the model in a Hugging Face folder.

    Raises:
        InputError: if the engine is not installed, or an option is wrong.
    """
    return import_module(ENGINES[options.engine]).engine(folder, options)
