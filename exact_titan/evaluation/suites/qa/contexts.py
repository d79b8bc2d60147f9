"""Examples from the tasks of lm-eval. The module imports lm-eval.

lm-eval makes the contexts, the few-shot examples, the choices and the stop texts.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask

from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites.qa.questions import Questions
from exact_titan.evaluation.suites.qa.tasks import TASKS, QaTask

ROOM = 256
"""Room of the answer of GSM8K in tokens: ``max_gen_toks`` of lm-eval's ``HFLM``, which the task does not change."""


def subjects_of_mmlu() -> list[str]:
    """Return the 57 subjects, as lm-eval names its tasks."""
    prefix = TASKS["mmlu"].lm_eval
    return [name.removeprefix(prefix) for name in task_manager().all_subtasks if name.startswith(prefix)]


class Contexts:
    """The tasks of lm-eval over given questions.

    Args:
        parts: the questions by the name of lm-eval's task, such as ``hellaswag`` and ``mmlu_anatomy``.
        tasks: the task of every part.
        shots: number of few-shot examples of every part.

    Attributes:
        tasks: the tasks of lm-eval by the name of the part.
    """

    def __init__(self, parts: Mapping[str, Questions], tasks: Mapping[str, QaTask], shots: Mapping[str, int]) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        members = [_member(name, one, tasks[name], shots[name]) for name, one in parts.items()]
        # A task with changed settings is a member of a group in lm-eval.
        loaded = task_manager().load([{"group": "exact_titan", "task": members}])["tasks"]
        self._shots = shots
        self.tasks: dict[str, ConfigurableTask] = {name: loaded[name] for name in parts}
        self._rows = {name: task.eval_docs for name, task in self.tasks.items()}

    def examples(
        self, part: str, row: int, *, name: str, task: str, draw: str, tokenizer: PromptTokenizer
    ) -> Iterator[Example]:
        """Yield the examples of one question: two for WinoGrande, and one for every other task.

        Args:
            part: name of the part.
            row: index of the question in the part.
            name: id of the question.
            task: name of the task in our tables.
            draw: seed of the draw of the few-shot examples.
            tokenizer: counts tokens, and adds the template.
        """
        asked = self.tasks[part]
        document = self._rows[part][row]
        asked.sampler.set_rnd(draw)
        requests = asked.construct_requests(
            document, asked.fewshot_context(document, self._shots[part]), metadata=(part, row, 1)
        )
        if asked.OUTPUT_TYPE == "generate_until":
            context, generation = requests.args
            target = asked.doc_to_target(document)
            yield replace(
                _example(name, task, context, (f"{asked.config.target_delimiter}{target}",), tokenizer),
                room=ROOM,
                references=(target.rpartition("#### ")[2],),
                stop=tuple(generation["until"]),
                meta={"row": row},
            )
        elif asked.multiple_input:
            gold = asked.doc_to_text(document)
            for place, (context, continuation) in enumerate(one.args for one in requests):
                yield replace(
                    _example(f"{name}/{place + 1}", task, context, (continuation,), tokenizer),
                    prefix=name,
                    meta={"row": row, "question": name, "gold": gold},
                )
        else:
            choices, gold = asked.doc_to_choice(document), int(asked.doc_to_target(document))
            meta: dict[str, Any] = {"row": row}
            if part != task:
                meta["subject"] = part.removeprefix(f"{task}_")
            if "acc_norm" in asked.aggregation():
                meta["characters"] = [len(one) for one in choices]
            yield replace(
                _example(name, task, requests[0].args[0], tuple(one.args[1] for one in requests), tokenizer),
                references=(choices[gold],),
                gold=gold,
                # The few-shot examples of a subject of MMLU are the same for all questions.
                prefix=part if part != task and self._shots[part] else "",
                meta=meta,
            )


def _example(name: str, task: str, context: str, continuations: tuple[str, ...], tokenizer: PromptTokenizer) -> Example:
    prompt = tokenizer.wrap(context)
    if tokenizer.template != "plain":
        # A template ends with a line break or a special token. The text after it begins with no space, as in lm-eval.
        continuations = tuple(one.removeprefix(" ") for one in continuations)
    return Example(name, "qa", task, prompt, tokenizer.count(prompt), room=0, continuations=continuations)


def task_manager() -> lm_eval.tasks.TaskManager:
    """Return lm-eval's manager of the six tasks alone. The index of all tasks takes seconds."""
    folder = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=[folder / one.lm_eval_folder for one in TASKS.values()]
    )


def _member(name: str, questions: Questions, task: QaTask, shots: int) -> dict[str, Any]:
    """Return the task of lm-eval with our questions instead of a download."""
    splits = {questions.split: questions.rows} | ({task.shots_split: questions.shots} if shots else {})

    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    member: dict[str, Any] = {"task": name, "custom_dataset": load, "num_fewshot": shots}
    member |= {f"{kind}_split": kind if kind == questions.split else None for kind in ("test", "validation")}
    if not shots:
        member |= {"training_split": None, "fewshot_split": None, "fewshot_config": None}
    return member
