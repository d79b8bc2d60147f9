"""Common words extraction: a numbered list of words, in which ten words occur more often than the others.

The rules are those of NVIDIA/RULER, ``scripts/data/synthetic/common_words_extraction.py``: one solved example before
the question, and fewer repeats below 4,096 tokens.
"""

from collections.abc import Sequence
from random import Random

import numpy as np

from exact_titan.evaluation.suites.ruler.drafts import Cell, Draft
from exact_titan.evaluation.suites.ruler.vocabulary import Vocabulary

ROOM = 120
COMMON = 10
"""Number of common words."""

_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_AFTER = "\nQuestion: What are the 10 most common words in the above list?"
_ANSWER_PREFIX = " Answer: The top 10 words that appear most often in the list are:"


def draft(rng: Random, cell: Cell, vocabulary: Vocabulary) -> Draft:
    """Return a question about common words, with its solved example.

    The solved example and the question have no word in common.
    """
    short = cell.length < 4096
    repeats, other_repeats = (6, 1) if short else (30, 3)
    example_words = 20 if short else 40
    # A word with its number has three tokens or more.
    most = example_words + COMMON + (cell.length - cell.room) // (3 * other_repeats)
    words = rng.sample(vocabulary.words, min(most, len(vocabulary.words)))
    example, common = words[:example_words], words[example_words : example_words + COMMON]
    uncommon = words[example_words + COMMON :]
    example_repeats, other_example_repeats = (3, 1) if short else (10, 3)
    shown = _numbered(
        example[:COMMON] * example_repeats + example[COMMON:] * other_example_repeats, seed=rng.getrandbits(64)
    )
    order = rng.getrandbits(64)
    # A guess for the number and the point before every word.
    sizes = other_repeats * (np.array(cell.tokenizer.counts([f" {word}" for word in uncommon])) + 3)
    return Draft(
        context=lambda count, _: _numbered(common * repeats + uncommon[:count] * other_repeats, seed=order),
        sizes=sizes,
        fewest=COMMON,
        before=f"{_BEFORE}{shown}{_AFTER}{_ANSWER_PREFIX} {_answer(example[:COMMON])}\n{_BEFORE}",
        after=_AFTER,
        answer_prefix=_ANSWER_PREFIX,
        references=tuple(common),
        gold=_answer(common),
    )


def _numbered(words: Sequence[str], *, seed: int) -> str:
    shuffled = list(words)
    Random(seed).shuffle(shuffled)
    return _answer(shuffled)


def _answer(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
