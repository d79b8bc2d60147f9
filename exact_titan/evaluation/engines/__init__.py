"""The engines by name. An engine answers examples: greedy generation and log-likelihoods.

A further engine is one module in this folder and one line in :data:`ENGINES`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example

ENGINES = {
    "transformers": "exact_titan.evaluation.engines.transformers",
    "vllm": "exact_titan.evaluation.engines.vllm",
    "server": "exact_titan.evaluation.engines.server",
}
"""The module of every engine. A module is imported when its engine is used."""


class Engine(Protocol):
    """A way to run a model.

    Attributes:
        settings: name, version and all settings that can change an answer, for the header of the answers.
    """

    settings: dict[str, Any]

    def answer(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Yield the answer of every example, in any order, each as soon as it is complete.

        Generation is greedy. The answer of an example does not depend on the examples that were answered before, so
        that a resumed generation gives the same records.
        """
