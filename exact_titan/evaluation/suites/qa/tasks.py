"""The facts of the six tasks: where their questions are, which columns they have, and how a row is checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class QaTask:
    """One task.

    Attributes:
        lm_eval: name of the task in lm-eval. For MMLU: the prefix of the names of the 57 subjects.
        lm_eval_folder: folder of the task in ``lm_eval/tasks``.
        hub: dataset on the Hugging Face hub.
        config: configuration of this dataset. For MMLU every subject is a configuration.
        folders: folders that may have the questions inside ``--qa.folder``. The first existing folder counts.
        splits: splits that the questions are from. The first existing split counts; the first is lm-eval's.
        shots_split: split that the few-shot examples are from.
        shots: number of few-shot examples by default.
        columns: columns that a row must have.
        check: raises an exception, or returns False, if a row has no right answer.
        subjects: whether the task has one dataset for every subject.
    """

    lm_eval: str
    lm_eval_folder: str
    hub: str
    config: str | None
    folders: tuple[str, ...]
    splits: tuple[str, ...]
    shots_split: str
    shots: int
    columns: tuple[str, ...]
    check: Callable[[Row], bool]
    subjects: bool = False


def _mmlu(row: Row) -> bool:
    return len(row["choices"]) == 4 and isinstance(row["answer"], int) and 0 <= row["answer"] < 4


def _arc(row: Row) -> bool:
    choices = row["choices"]
    return len(choices["text"]) == len(choices["label"]) and choices["label"].count(row["answerKey"]) == 1


def _hellaswag(row: Row) -> bool:
    return 0 <= int(row["label"]) < len(row["endings"]) and isinstance(row["ctx_b"], str)


def _winogrande(row: Row) -> bool:
    return row["answer"] in ("1", "2") and "_" in row["sentence"]


def _piqa(row: Row) -> bool:
    return row["label"] in (0, 1)


def _gsm8k(row: Row) -> bool:
    return "#### " in row["answer"]


TASKS = {
    "mmlu": QaTask(
        lm_eval="mmlu_",
        lm_eval_folder="mmlu/default",
        hub="cais/mmlu",
        config=None,
        folders=("mmlu", "hails/mmlu_no_train"),
        splits=("test",),
        shots_split="dev",
        shots=5,
        columns=("question", "choices", "answer"),
        check=_mmlu,
        subjects=True,
    ),
    "arc_challenge": QaTask(
        lm_eval="arc_challenge",
        lm_eval_folder="arc",
        hub="allenai/ai2_arc",
        config="ARC-Challenge",
        folders=("arc_challenge", "ai2_arc/ARC-Challenge"),
        splits=("test", "validation"),
        shots_split="train",
        shots=25,
        columns=("question", "choices", "answerKey"),
        check=_arc,
    ),
    "hellaswag": QaTask(
        lm_eval="hellaswag",
        lm_eval_folder="hellaswag",
        hub="Rowan/hellaswag",
        config=None,
        folders=("hellaswag/data", "hellaswag/none", "hellaswag"),
        splits=("validation",),
        shots_split="train",
        shots=10,
        columns=("ctx_a", "ctx_b", "activity_label", "endings", "label"),
        check=_hellaswag,
    ),
    "winogrande": QaTask(
        lm_eval="winogrande",
        lm_eval_folder="winogrande",
        hub="allenai/winogrande",
        config="winogrande_xl",
        folders=("winogrande/winogrande_xl", "winogrande"),
        splits=("validation",),
        shots_split="train",
        shots=5,
        columns=("sentence", "option1", "option2", "answer"),
        check=_winogrande,
    ),
    "piqa": QaTask(
        lm_eval="piqa",
        lm_eval_folder="piqa",
        hub="baber/piqa",
        config=None,
        folders=("piqa/data", "piqa/plain_text", "piqa"),
        splits=("validation",),
        shots_split="train",
        shots=0,
        columns=("goal", "sol1", "sol2", "label"),
        check=_piqa,
    ),
    "gsm8k": QaTask(
        lm_eval="gsm8k",
        lm_eval_folder="gsm8k",
        hub="openai/gsm8k",
        config="main",
        folders=("gsm8k/main", "gsm8k"),
        splits=("test",),
        shots_split="train",
        shots=5,
        columns=("question", "answer"),
        check=_gsm8k,
    ),
}
"""The tasks in the order of tables. The numbers of few-shot examples are those of the Open LLM Leaderboard (2023). The
leaderboard has no PIQA. PIQA has no few-shot examples, as in the paper of LLaMA."""
