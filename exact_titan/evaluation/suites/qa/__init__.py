"""Six question-answering tasks: MMLU, ARC-Challenge, HellaSwag, WinoGrande, PIQA and GSM8K.

The tasks are those of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness).

1. :mod:`options` reads the options; :mod:`tasks` has one line of facts for every task.
2. :mod:`questions` reads the questions from local files (``--qa.folder``) or from the Hugging Face hub.
3. :mod:`contexts` asks lm-eval for the contexts with their few-shot examples and for the choices, and makes our
   examples. :mod:`preparation` chooses the questions.
4. An engine answers the examples, as in every suite.
5. :mod:`scoring` computes lm-eval's metrics from the examples and the answers alone. Scoring needs no lm-eval.
"""

from collections.abc import Mapping, Sequence

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import QaOptions
from exact_titan.evaluation.scores import Metric, Score
from exact_titan.evaluation.suites import Prepared, Request
from exact_titan.evaluation.suites.qa import scoring
from exact_titan.evaluation.suites.qa.options import check_tasks


class QaSuite:
    """The six tasks. A suite without context lengths."""

    name = "qa"
    version = 1
    has_lengths = False
    metrics = (
        Metric("accuracy", "accuracy, %", higher_is_better=True, percent=True),
        Metric("accuracy_norm", "accuracy by characters, %", higher_is_better=True, percent=True),
        Metric("accuracy_flexible", "accuracy, last number, %", higher_is_better=True, percent=True),
        Metric("cross_entropy", "cross-entropy, nats/token", higher_is_better=False, percent=False),
    )

    def tasks(self, options: QaOptions) -> tuple[str, ...]:
        """Return the names of the tasks.

        Raises:
            InputError: if there is no such task.
        """
        return check_tasks(options)

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of the tasks.

        Raises:
            InputError: if lm-eval is not installed, if an option is wrong, or if questions are missing or wrong.
        """
        from exact_titan.evaluation.suites.qa.preparation import prepare

        return prepare(request)

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the scores of the questions whose examples all have an answer."""
        return scoring.score(examples, answers)


def suite() -> QaSuite:
    """Return the suite."""
    return QaSuite()
