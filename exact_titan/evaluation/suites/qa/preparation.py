"""From options to examples: all questions are read first, and the examples are then made one by one."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import QaOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Prepared, Request
from exact_titan.evaluation.suites.qa.options import check_tasks, shots_of
from exact_titan.evaluation.suites.qa.questions import Questions, hub_questions, local_folder, local_questions
from exact_titan.evaluation.suites.qa.tasks import TASKS


@dataclass(frozen=True)
class _Chosen:
    """The questions of one task: ``order`` has the part and the row of every chosen question."""

    name: str
    parts: dict[str, Questions]
    order: list[tuple[str, int]]
    shots: int

    @property
    def total(self) -> int:
        return sum(len(one.rows) for one in self.parts.values())

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the prompts of the task beside the seed and the tokenizer."""
        digest = hashlib.sha256("".join(f"{name} {one.sha256}\n" for name, one in self.parts.items()).encode())
        split = next(iter(self.parts.values())).split
        return {"shots": self.shots, "questions": len(self.order), "split": split, "sha256": digest.hexdigest()}


def prepare(request: Request) -> Prepared:
    """Return the prompts of the tasks.

    Raises:
        InputError: if lm-eval is not installed, if an option is wrong, or if questions are missing or wrong.
    """
    options: QaOptions = request.options
    shots = shots_of(options)
    if find_spec("lm_eval") is None:
        raise InputError("the suite qa needs lm-eval, which is not installed: pip install 'exact-titan[eval]'")
    chosen = [_choose(name, shots[name], request) for name in check_tasks(options)]
    return Prepared(
        examples=_examples(chosen, request.seed, request.tokenizer),
        settings={"lm_eval": version("lm_eval"), "tasks": {one.name: one.settings() for one in chosen}},
        notes=tuple(note for one in chosen for note in _notes(one, request.tokenizer, options)),
    )


def _choose(name: str, shots: int, request: Request) -> _Chosen:
    options: QaOptions = request.options
    parts = _parts(name, shots, options)
    # lm-eval draws one example more than asked, because the question itself may be among them.
    needed = shots + (0 if TASKS[name].subjects else 1)
    for part, questions in parts.items():
        if shots and len(questions.shots) < needed:
            raise InputError(
                f"--qa.shots: {part} has {len(questions.shots)} rows in the split {TASKS[name].shots_split}, and "
                f"{shots} few-shot examples need {needed}: ask for fewer, such as --qa.shots {name}=0"
            )
    order = [(part, row) for part, questions in parts.items() for row in range(len(questions.rows))]
    random.Random(f"{request.seed}/qa/{name}").shuffle(order)
    wanted = request.examples if options.questions is None else options.questions
    return _Chosen(name, parts, order[: wanted or None], shots)


def _parts(name: str, shots: int, options: QaOptions) -> dict[str, Questions]:
    """Return the questions by the name of lm-eval's task. MMLU has one part for every subject."""
    task = TASKS[name]
    if not task.subjects:
        if options.folder is None:
            return {name: hub_questions(task, task.config, shots)}
        return {name: local_questions(local_folder(options.folder, task), task, shots)}
    from exact_titan.evaluation.suites.qa.contexts import subjects_of_mmlu

    subjects = subjects_of_mmlu()
    if options.folder is None:
        return {f"{task.lm_eval}{one}": hub_questions(task, one, shots) for one in subjects}
    folder = local_folder(options.folder, task)
    found = [one for one in subjects if (folder / one).is_dir()]
    if not found:
        raise InputError(f"{folder} has no subject of MMLU: add folders such as {folder / subjects[0]}")
    return {f"{task.lm_eval}{one}": local_questions(folder / one, task, shots) for one in found}


def _notes(chosen: _Chosen, tokenizer: PromptTokenizer, options: QaOptions) -> Iterator[str]:
    task = TASKS[chosen.name]
    split = next(iter(chosen.parts.values())).split
    source = task.hub if options.folder is None else "a local folder"
    yield (
        f"{chosen.name}: {len(chosen.order):,} of {chosen.total:,} questions of the split {split} from {source}, "
        f"{chosen.shots}-shot"
    )
    if split != task.splits[0]:
        yield (
            f"{chosen.name}: the folder has no split {task.splits[0]}; the scores are not comparable with scores on "
            f"that split"
        )
    if task.subjects and len(chosen.parts) < 57:
        yield f"{chosen.name}: {len(chosen.parts)} of 57 subjects"
    spelled = _special_tokens(chosen.parts, tokenizer)
    if spelled:
        yield (
            f"{chosen.name}: {len(spelled):,} rows spell a special token of the tokenizer, such as {spelled[0]}; the "
            f"tokenizer reads the special token, as in lm-eval"
        )


def _special_tokens(parts: Mapping[str, Questions], tokenizer: PromptTokenizer) -> list[str]:
    found = (tokenizer.special_token_in(str(row)) for one in parts.values() for row in (*one.rows, *one.shots))
    return [token for token in found if token is not None]


def _examples(chosen: Sequence[_Chosen], seed: int, tokenizer: PromptTokenizer) -> Iterator[Example]:
    from exact_titan.evaluation.suites.qa.contexts import Contexts

    contexts = Contexts(
        {part: questions for one in chosen for part, questions in one.parts.items()},
        {part: TASKS[one.name] for one in chosen for part in one.parts},
        {part: one.shots for one in chosen for part in one.parts},
    )
    for one in chosen:
        for place, (part, row) in enumerate(one.order):
            yield from contexts.examples(
                part,
                row,
                name=f"qa/{one.name}/any/{place}",
                task=one.name,
                draw=f"{seed}/qa/{one.name}/{place}",
                tokenizer=tokenizer,
            )
