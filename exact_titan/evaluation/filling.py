"""Fill a prompt with pieces of a haystack up to the length of its cell.

The token counts of pieces do not add up to the count of the whole prompt, because a tokenizer joins letters across the
border of two pieces. The search therefore counts the whole prompt, and uses the sizes of the pieces only as a guess:

1. Count the prompt with the fewest pieces. This prompt has to fit.
2. Guess the number of pieces from the sizes of the pieces, and count the prompt.
3. Scale the sizes to the count, and correct the guess, until the prompt is close to the limit.

One or two counts of the whole prompt are the rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from exact_titan.errors import InputError
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

LEAST = 0.98
"""Smallest share of ``length - room`` that a filled prompt has."""

_CLOSE = 0.995  # the search stops here; the rest is worth no further count of the whole prompt


class PromptDoesNotFit(InputError):
    """The part of a prompt that cannot be shortened is longer than the length of the cell allows."""


@dataclass(frozen=True)
class Filled:
    """A filled prompt.

    Attributes:
        prompt: the prompt.
        tokens: number of token ids of the prompt, with BOS.
        pieces: number of pieces in the prompt.
    """

    prompt: str
    tokens: int
    pieces: int


def fill(
    render: Callable[[int], str],
    sizes: Sequence[int] | np.ndarray,
    *,
    tokenizer: PromptTokenizer,
    task: str,
    length: int,
    room: int,
    fewest: int = 0,
    least: float = LEAST,
) -> Filled:
    """Return the prompt with the number of pieces that fills ``length - room`` tokens.

    The result depends on the arguments alone. A prompt is never cut.

    Args:
        render: returns the whole prompt, in its template, with the first ``n`` pieces. More pieces give more tokens.
        sizes: approximate number of tokens of each piece, ``[pieces]``. The length is the largest number of pieces.
        tokenizer: counts the tokens.
        task: name of the task in messages, such as ``ruler/niah_single_1``.
        length: context length of the cell in tokens, with the room.
        room: tokens that stay free for the answer.
        fewest: smallest number of pieces.
        least: smallest share of ``length - room`` that counts as filled. 0: any share.

    Raises:
        PromptDoesNotFit: if the prompt with the fewest pieces is too long.
        InputError: if the pieces are too few or too large to fill the prompt.
    """
    limit = length - room
    ends = np.concatenate([[0.0], np.cumsum(np.asarray(sizes, dtype=np.float64))])
    prompt = render(fewest)
    best = Filled(prompt, tokenizer.count(prompt), fewest)
    if best.tokens > limit:
        raise PromptDoesNotFit(
            f"{task}: a length of {length} tokens is too short: the shortest prompt has {best.tokens} tokens, and the "
            f"room of the answer has {room} tokens, {best.tokens + room - length} tokens too many: name a length of "
            f"{best.tokens + room} or more"
        )
    most = len(ends) - 1
    too_many = most + 1  # smallest known number of pieces that does not fit
    fixed, scale = best.tokens, 1.0  # scale: real tokens for a token of the sizes
    while best.tokens < _CLOSE * limit and too_many - best.pieces > 1:
        guess = int(np.searchsorted(ends, ends[fewest] + (limit - fixed) / scale, side="right")) - 1
        pieces = min(max(guess, best.pieces + 1), too_many - 1)
        prompt = render(pieces)
        tokens = tokenizer.count(prompt)
        if ends[pieces] > ends[fewest]:
            scale = max(tokens - fixed, 1) / (ends[pieces] - ends[fewest])
        if tokens > limit:
            too_many = pieces
        else:
            best = Filled(prompt, tokens, pieces)
    if best.tokens >= least * limit:
        return best
    if best.pieces == most:
        raise InputError(
            f"{task}: the haystack fills only {best.tokens} of {limit} tokens: name a haystack with more text, name a "
            f"shorter length than {length}, or leave the task out"
        )
    raise InputError(
        f"{task}: {best.pieces} pieces fill only {best.tokens} of {limit} tokens, and the next piece does not fit: "
        f"name a haystack with shorter pieces, or a longer length than {length}"
    )
