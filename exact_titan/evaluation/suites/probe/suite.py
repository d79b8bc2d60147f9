"""The suite ``probe``: its examples and its scores."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.filling import fill
from exact_titan.evaluation.haystacks import Prose, read_texts
from exact_titan.evaluation.options import ProbeOptions
from exact_titan.evaluation.scores import Metric, Score
from exact_titan.evaluation.suites import Prepared, Request
from exact_titan.evaluation.suites.probe.placing import Filler, Frame
from exact_titan.evaluation.suites.probe.questions import (
    CHOICES,
    TASKS,
    VARIANTS,
    Passage,
    Task,
    draw_passage,
    words_of_one_size,
)

SHORTEST = 128
"""The first distance in tokens. Every further distance is twice the distance before."""


@dataclass(frozen=True)
class _Context:
    """A passage with its filler. Four questions share a context.

    Attributes:
        task: name of the task.
        number: index of the context. Its questions are the examples ``4 * number`` to ``4 * number + 3``.
        passage: the passage in both variants, with its questions.
        filler: the filler.
        frames: the prompts without filler, by variant and question.
        room: tokens of a choice.
    """

    task: str
    number: int
    passage: Passage
    filler: Filler
    frames: dict[tuple[str, int], Frame]
    room: int

    def least_tokens(self) -> tuple[int, int]:
        """Return the number of tokens up to the end of the passage, and after the passage, without filler."""
        return self.frames["evidence", 0].least_tokens()


class ProbeSuite:
    """The evidence probe (:mod:`exact_titan.evaluation.suites.probe`)."""

    name = "probe"
    version = 1
    has_lengths = True
    metrics = (
        Metric("context_margin", "context margin, nats", higher_is_better=True, percent=False),
        Metric("margin_evidence", "margin with the evidence, nats", higher_is_better=True, percent=False),
        Metric("margin_distractor", "margin with the distractor, nats", higher_is_better=True, percent=False),
        Metric("accuracy", "right answer first, with the evidence, %", higher_is_better=True, percent=True),
    )

    def tasks(self, options: ProbeOptions) -> tuple[str, ...]:
        """Return the names of the tasks."""
        return tuple(TASKS)

    def prepare(self, request: Request) -> Prepared:
        """Return the prompts of a length: ``request.examples`` pairs of prompts for every task and distance.

        Raises:
            InputError: if the length is too short, or the haystack or the tokenizer does not suit the questions.
        """
        length = _length(request)
        texts = read_texts(request.options.haystack, request.tokenizer)
        prose = Prose(texts.texts, request.tokenizer)
        contexts = [one for name, task in TASKS.items() for one in _contexts(name, task, request, prose)]
        distances, left_out = _distances(length, contexts)
        notes = [texts.note, f"{CHOICES} questions share a context."]
        if left_out:
            notes.append(f"Length {length} has no room for the distances {', '.join(map(str, left_out))}.")
        if request.examples % CHOICES:
            notes.append(
                f"{request.examples} examples are not a multiple of {CHOICES}: the choices of the last context are not "
                f"balanced."
            )
        return Prepared(
            (one for context in contexts for distance in distances for one in _examples(request, context, distance)),
            settings={"haystack": texts.sha256, "distances": distances},
            notes=tuple(notes),
        )

    def score(self, examples: Sequence[Example], answers: Mapping[str, Answer]) -> list[Score]:
        """Return the scores of the questions that have an answer in both variants.

        The margin is the log-likelihood of the right answer minus the largest log-likelihood of another choice. The
        context margin is the margin with the evidence minus the margin with the distractor.

        Raises:
            InputError: if an answer has no log-likelihoods.
        """
        margins: dict[str, dict[str, float]] = {}
        for one in examples:
            if one.id in answers:
                margins.setdefault(one.meta["pair"], {})[one.meta["variant"]] = _margin(one, answers[one.id])
        scores = []
        for one in examples:
            pair = margins.get(one.meta["pair"], {})
            if one.meta["variant"] == "evidence" and len(pair) == len(VARIANTS):
                values = {
                    "context_margin": pair["evidence"] - pair["distractor"],
                    "margin_evidence": pair["evidence"],
                    "margin_distractor": pair["distractor"],
                    "accuracy": float(pair["evidence"] > 0),
                }
                place = (one.depth, one.meta["distance"])
                # The questions about one context depend on each other.
                scores.append(Score(one.meta["pair"], one.task, one.length, *place, values, unit=one.prefix))
        return scores


def _margin(example: Example, answer: Answer) -> float:
    if len(answer.logprobs) != len(example.continuations):
        raise InputError(
            f"the answer to {example.id} has no log-likelihoods, and the probe needs them: make the answers with an "
            f"engine that measures likelihoods"
        )
    others = [value for index, value in enumerate(answer.logprobs) if index != example.gold]
    return answer.logprobs[example.gold] - max(others)


def _length(request: Request) -> int:
    assert request.length is not None  # has_lengths
    return request.length


def _contexts(name: str, task: Task, request: Request, prose: Prose) -> Iterator[_Context]:
    tokenizer, length = request.tokenizer, _length(request)
    keys = words_of_one_size(task.keys, tokenizer, least=CHOICES, what=f"keys of {name}")
    values = words_of_one_size(task.values, tokenizer, least=2 * CHOICES, what=f"values of {name}")
    (room,) = tokenizer.counts([f" {values[0]}"])
    for number in range(-(-request.examples // CHOICES)):
        rng = random.Random(f"{request.seed}/probe/{name}/{length}/{number}")
        filler = Filler(prose, rng.randrange(len(prose.words)), length)
        free = [value for value in values if value not in filler.names]
        if len(free) < 2 * CHOICES:
            raise InputError(
                f"the haystack contains all but {len(free)} values of {name} within {length} tokens, and a question "
                f"needs {2 * CHOICES} other values: name another haystack"
            )
        passage = draw_passage(task, rng, keys=keys, values=free)
        frames = {
            (variant, question): Frame(tokenizer, getattr(passage, variant), *passage.questions[question])
            for variant in VARIANTS
            for question in range(CHOICES)
        }
        if len({frame.least_tokens() for frame in frames.values()}) > 1:
            raise InputError(
                f"{tokenizer.folder}: the evidence and the distractor of {name} have different numbers of tokens: "
                f"leave the suite probe out for this tokenizer"
            )
        yield _Context(name, number, passage, filler, frames, room)


def _distances(length: int, contexts: Sequence[_Context]) -> tuple[list[int], list[int]]:
    """Return the distances below the length that have room, and the distances that have none.

    Raises:
        InputError: if no distance has room.
    """
    needs = [(*one.least_tokens(), one.room) for one in contexts]
    head, tail, room = (max(column) for column in zip(*needs, strict=True))
    fits: list[int] = []
    left_out: list[int] = []
    distance = SHORTEST
    while distance < length:
        (fits if tail <= distance <= length - room - head else left_out).append(distance)
        distance *= 2
    if not fits:
        least = SHORTEST
        while least < tail:
            least *= 2
        raise InputError(
            f"probe: a length of {length} tokens is too short: the evidence needs {head} tokens, the shortest distance "
            f"is {least} tokens, and the answer needs {room}: name a length of {head + least + room} or more"
        )
    return fits, left_out


def _examples(request: Request, context: _Context, distance: int) -> Iterator[Example]:
    """Yield the examples of a context at a distance: its questions with the evidence, then with the distractor.

    The frames of a context have the same number of tokens, and the same text around the passage and the question. The
    count of one prompt is therefore the count of all prompts.
    """
    length, passage = _length(request), context.passage
    first = context.frames["evidence", 0]
    after = context.filler.after(first, distance)
    filled = fill(
        lambda words: first.prompt(context.filler.before(words), after),
        context.filler.sizes,
        tokenizer=request.tokenizer,
        task=f"probe/{context.task}",
        length=length,
        room=context.room,
    )
    before = context.filler.before(filled.pieces)
    exact = first.distance(after)
    for (variant, question), frame in context.frames.items():
        k = CHOICES * context.number + question
        if k >= request.examples:
            continue
        pair = f"probe/{context.task}/{length}/{k}/{distance}"
        yield Example(
            id=f"{pair}/{variant}",
            suite="probe",
            task=context.task,
            prompt=frame.prompt(before, after),
            tokens=filled.tokens,
            room=0,
            length=length,
            continuations=tuple(f" {choice}" for choice in passage.choices),
            gold=question,
            depth=1 - exact / filled.tokens,
            distance=exact,
            prefix=f"probe/{context.task}/{length}/{context.number}",
            meta={"pair": pair, "variant": variant, "distance": distance},
        )
