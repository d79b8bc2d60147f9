"""The eight needle-in-a-haystack tasks: sentences that give the value of a key, hidden in a haystack.

The rules are those of NVIDIA/RULER, ``scripts/data/synthetic/niah.py`` and ``scripts/synthetic.yaml``.
"""

import uuid
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from exact_titan.evaluation.haystacks import Prose
from exact_titan.evaluation.suites.ruler.drafts import NOISE_LINE, SENTENCE, Cell, Draft, listed, noise_lines
from exact_titan.evaluation.suites.ruler.vocabulary import Vocabulary

ROOM = 128
DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))
"""The 40 depths of a needle in prose."""

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."

Kind = Literal["numbers", "words", "uuids"]


@dataclass(frozen=True)
class NeedleTask:
    """The values of ``synthetic.yaml`` for a task.

    Attributes:
        haystack: ``noise``, ``essay`` (prose), or ``needle`` (needles with other keys).
        key: kind of the keys.
        value: kind of the values.
        keys: number of keys with needles in the context.
        values: number of values of each key.
        queries: number of keys that the question asks for.
    """

    haystack: Literal["noise", "essay", "needle"]
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needle"),
    "niah_multikey_3": NeedleTask("needle", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, queries=4),
}


def draft(task: NeedleTask, rng: Random, cell: Cell, vocabulary: Vocabulary, prose: Prose | None) -> Draft:
    """Return a question of a needle task.

    Args:
        task: the task.
        rng: the generator of this example.
        cell: the task's name, length and tokenizer.
        vocabulary: the words of keys.
        prose: the prose haystack, for a task with the haystack ``essay``.
    """
    new = _Distinct(rng, vocabulary)
    keys = [new(task.key) for _ in range(task.keys)]
    values = {key: [new(task.value) for _ in range(task.values)] for key in keys}
    needles = [_NEEDLE.format(kind=task.value, key=key, value=value) for key in keys for value in values[key]]
    asked = rng.sample(keys, task.queries)
    answers = [value for key in asked for value in values[key]]
    one = len(answers) == 1
    evidence = _NEEDLE.format(kind=task.value, key=asked[0], value=answers[0]) if one else None
    rng.shuffle(needles)
    kind = task.value.removesuffix("s") if one else task.value
    verb, what = ("is", "is") if one else ("are", "are all")
    question = partial(
        Draft,
        before=(
            f"{'A' if one else 'Some'} special magic {kind} {verb} hidden within the following text. Make sure to "
            f"memorize it. I will quiz you about the {kind} afterwards.\n"
        ),
        after=f"\nWhat {what} the special magic {kind} for {listed(asked)} mentioned in the provided text?",
        answer_prefix=f" The special magic {kind} for {listed(asked)} mentioned in the provided text {verb}",
        references=tuple(answers),
        gold=listed(answers),
        evidence=evidence,
    )
    most = cell.length - cell.room
    if task.haystack == "essay":
        assert prose is not None
        placed = list(zip(rng.sample(DEPTHS, len(needles)), needles, strict=True))
        return question(
            context=lambda words, _: prose.with_needles(words, placed), sizes=prose.sizes_up_to(most), fewest=1
        )
    if task.haystack == "noise":
        (size,) = cell.tokenizer.counts([f"{NOISE_LINE}\n"])
        lines = [NOISE_LINE] * (most // size + 1)
    else:
        tries = [_NEEDLE.format(kind=task.value, key=new(task.key), value=new(task.value)) + "\n" for _ in range(8)]
        size = min(cell.tokenizer.counts(tries))
        lines = [
            _NEEDLE.format(kind=task.value, key=new(task.key), value=new(task.value))
            for _ in range(most // max(size - 4, 1) + 1)
        ]
    places = rng.getrandbits(64)

    def context(count: int, sentences: int) -> str:
        shown = lines[:count]
        indexes = sorted(Random(places).sample(range(count), len(needles)), reverse=True)
        for index, needle in zip(indexes, needles, strict=True):
            shown.insert(index, needle)
        return noise_lines(shown, sentences)

    return question(context=context, sizes=[size] * len(lines), fewest=len(needles), filler=SENTENCE)


class _Distinct:
    """Draws keys and values. No key or value occurs twice in an example, so no distractor has the answer."""

    def __init__(self, rng: Random, vocabulary: Vocabulary) -> None:
        self._rng, self._vocabulary = rng, vocabulary
        self._drawn: set[str] = set()

    def __call__(self, kind: Kind) -> str:
        while (text := self._draw(kind)) in self._drawn:
            pass
        self._drawn.add(text)
        return text

    def _draw(self, kind: Kind) -> str:
        if kind == "numbers":
            return str(self._rng.randint(1_000_000, 9_999_999))
        if kind == "words":
            return f"{self._rng.choice(self._vocabulary.adjectives)}-{self._rng.choice(self._vocabulary.nouns)}"
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
