"""Variable tracking: a chain of assignments in noise, and the question which variables have the value.

The rules are those of NVIDIA/RULER, ``scripts/data/synthetic/variable_tracking.py``: one chain of four hops, and one
solved example before the question.
"""

import string
from random import Random

from exact_titan.evaluation.filling import fill
from exact_titan.evaluation.suites.ruler.drafts import NOISE_LINE, SENTENCE, Cell, Draft, noise_lines

ROOM = 30
HOPS = 4
EXAMPLE_TOKENS = 500
"""Largest number of tokens of the solved example without its answer."""

_BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_AFTER = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
_ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {number} variables are assigned the "
    "value {value}, they are: "
)


def draft(rng: Random, cell: Cell) -> Draft:
    """Return a question of variable tracking, with its solved example."""
    (size,) = cell.tokenizer.counts([f"{NOISE_LINE}\n"])
    example = _Chain(rng, letters=3)
    lines = fill(
        lambda count: example.context(count, 0).join(example.around()),
        [size] * (EXAMPLE_TOKENS // size + 1),
        tokenizer=cell.tokenizer,
        task=f"the solved example of ruler/{cell.task}",
        length=EXAMPLE_TOKENS,
        room=0,
        fewest=HOPS + 1,
        least=0,
    )
    solved = f"{lines.prompt} {' '.join(example.names)}\n\n"
    chain = _Chain(rng, letters=5)
    return Draft(
        context=chain.context,
        sizes=[size] * ((cell.length - cell.room) // size + 1),
        fewest=HOPS + 1,
        before=solved + _BEFORE,
        after=chain.after,
        answer_prefix=chain.answer_prefix,
        references=tuple(chain.names),
        gold=" ".join(chain.names),
        filler=SENTENCE,
    )


class _Chain:
    """A chain of assignments with random names.

    Attributes:
        names: the variables of the chain, in order.
        after: the question.
        answer_prefix: the first words of the answer.
    """

    def __init__(self, rng: Random, letters: int) -> None:
        names: dict[str, None] = {}
        while len(names) < HOPS + 1:
            names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
        self.names = list(names)
        value = rng.randint(10_000, 99_998)
        self._lines = [f"VAR {self.names[0]} = {value}"]
        self._lines += [f"VAR {new} = VAR {old} " for old, new in zip(self.names, self.names[1:], strict=False)]
        self._places = rng.getrandbits(64)
        self.after = _AFTER.format(value=value)
        self.answer_prefix = _ANSWER_PREFIX.format(number=HOPS + 1, value=value)

    def around(self) -> tuple[str, str]:
        """Return the text of the prompt before and after the context."""
        return _BEFORE, self.after + self.answer_prefix

    def context(self, count: int, sentences: int) -> str:
        """Return ``count`` lines and some more sentences of noise, with the chain in its order."""
        lines = [NOISE_LINE] * count
        places = sorted(Random(self._places).sample(range(count), len(self._lines)))
        for shift, (place, line) in enumerate(zip(places, self._lines, strict=True)):
            lines.insert(place + shift, line)
        return noise_lines(lines, sentences)
