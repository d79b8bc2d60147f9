"""The suite: its tasks under the options, its prompts and its scores."""

from collections.abc import Iterator, Mapping, Sequence

from exact_titan.errors import InputError, did_you_mean
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import NolimaOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.scores import Score
from exact_titan.evaluation.suites import Prepared, Request
from exact_titan.evaluation.suites.nolima.books import BookTokens
from exact_titan.evaluation.suites.nolima.material import Material, read_material
from exact_titan.evaluation.suites.nolima.needle_sets import Question
from exact_titan.evaluation.suites.nolima.plan import QUESTIONS_AT_A_PLACE
from exact_titan.evaluation.suites.nolima.prompts import ROOM, TaskPrompts, tokens_of_books
from exact_titan.evaluation.suites.nolima.scoring import METRICS, score
from exact_titan.evaluation.suites.nolima.tasks import TASKS


class NolimaSuite:
    """NoLiMa: a needle that shares no words with its question (arXiv 2502.05167)."""

    name = "nolima"
    version = 1
    has_lengths = True
    metrics = METRICS

    def tasks(self, options: NolimaOptions) -> tuple[str, ...]:
        """Return the names of the tasks.

        Raises:
            InputError: if there is no such task, or no task at all.
        """
        for task in options.tasks:
            if task not in TASKS:
                raise InputError(
                    f"--nolima.tasks: there is no task {task!r}{did_you_mean(task, TASKS)}; the tasks are "
                    f"{', '.join(TASKS)}"
                )
        if not options.tasks:
            raise InputError(f"--nolima.tasks names no task: name some of {', '.join(TASKS)}")
        return tuple(task for task in TASKS if task in options.tasks)

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of a request.

        Raises:
            InputError: if an option or a file is wrong, if the length is too short or too long for the books, or if a
                task has fewer examples than requested.
        """
        options: NolimaOptions = request.options
        tasks = self.tasks(options)
        if options.depths < 2:
            raise InputError(f"--nolima.depths {options.depths}: name 2 depths or more")
        assert request.length is not None
        material = read_material(options.folder, request.tokenizer)
        shelf = _Shelf(material, request)
        notes = [material.note]
        prompts: list[TaskPrompts] = []
        for task in tasks:
            questions = material.questions(TASKS[task])
            _check_special_tokens(questions, material, request.tokenizer)
            prompts.append(_task_prompts(task, questions, shelf, request, notes))
        settings = {
            "needle_sets": {task: material.sha256(TASKS[task]) for task in tasks},
            "books": material.books_sha256,
            "depths": options.depths,
            "questions_at_a_place": QUESTIONS_AT_A_PLACE,
            "room": ROOM,
        }
        return Prepared(_examples(prompts, request.examples), settings, tuple(notes))

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the score of every example that has an answer."""
        return [score(one, answers[one.id]) for one in examples if one.id in answers]


class _Shelf:
    """The books without the answers of a task. Tasks with the same answers share the books."""

    def __init__(self, material: Material, request: Request) -> None:
        self._material, self._request = material, request
        self._books: dict[frozenset[str], tuple[list[BookTokens], int]] = {}

    def books(self, questions: Sequence[Question]) -> tuple[list[BookTokens], int]:
        """Return the books without the lines that contain an answer, and the number of these lines."""
        answers = frozenset(name for one in questions for name in (*one.characters, *one.references))
        if answers not in self._books:
            assert self._request.length is not None
            tokens = tokens_of_books(self._request.length)
            books = [book.without(sorted(answers)) for book in self._material.books]
            left_out = sum(new.left_out - old.left_out for new, old in zip(books, self._material.books, strict=True))
            self._books[answers] = [BookTokens(book, self._request.tokenizer, tokens) for book in books], left_out
        return self._books[answers]


def _task_prompts(
    task: str, questions: Sequence[Question], shelf: _Shelf, request: Request, notes: list[str]
) -> TaskPrompts:
    assert request.length is not None
    books, left_out = shelf.books(questions)
    if left_out:
        notes.append(f"NoLiMa, {task}: {left_out} lines of the books with an answer of the needle set are left out.")
    if TASKS[task].rules.choices and not all(one.choices for one in questions):
        notes.append(
            f"NoLiMa, {task}: the needle set has no field choices, so there is no accuracy of the choice by likelihood."
        )
    prompts = TaskPrompts(
        task,
        questions,
        books,
        tokenizer=request.tokenizer,
        length=request.length,
        seed=request.seed,
        depths=request.options.depths,
    )
    if request.examples > prompts.count:
        raise InputError(
            f"nolima/{task} has {prompts.count} examples ({len(questions)} questions, {len(books)} books, "
            f"{request.options.depths} depths), and {request.examples} are requested: name {prompts.count} or fewer"
        )
    return prompts


def _examples(tasks: Sequence[TaskPrompts], number: int) -> Iterator[Example]:
    for prompts in tasks:
        yield from prompts.examples(number)


def _check_special_tokens(questions: Sequence[Question], material: Material, tokenizer: PromptTokenizer) -> None:
    for one in questions:
        texts = (one.template, one.needle, one.question, one.distractor or "", *one.characters, *one.choices)
        token = next((found for text in texts if (found := tokenizer.special_token_in(text))), None)
        if token is not None:
            raise InputError(
                f"{material.needle_sets}: the question {one.name} spells the special token {token}: remove the token "
                f"from the needle set"
            )
