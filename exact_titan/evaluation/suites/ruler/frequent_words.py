"""Frequent words extraction: coded words with frequencies of a zeta distribution.

The rules are those of NVIDIA/RULER, ``scripts/data/synthetic/freq_words_extraction.py``: words of six letters, alpha 2,
the most frequent word is the noise ``...``, and the answer is the next three words.
"""

import math
import string
from random import Random

from exact_titan.evaluation.suites.ruler.drafts import Cell, Draft, listed

ROOM = 50
ALPHA = 2.0
LETTERS = 6
NOISE = "..."
_ZETA = math.pi**2 / 6  # zeta(2)

# From this number of words on, the fourth word occurs at least once more than the fifth.
FEWEST = math.ceil(_ZETA / (4**-ALPHA - 5**-ALPHA))


def draft(rng: Random, cell: Cell) -> Draft:
    """Return a question about frequent words."""
    limit = cell.length - cell.room
    words: dict[str, None] = {NOISE: None}
    while len(words) < max(limit // 50, 5):
        words["".join(rng.choices(string.ascii_lowercase, k=LETTERS))] = None
    vocabulary = list(words)
    order = rng.getrandbits(64)

    def context(count: int, more_noise: int) -> str:
        coded = [word for rank, word in enumerate(vocabulary, start=1) for _ in range(frequency(rank, count))]
        coded += [NOISE] * more_noise
        Random(order).shuffle(coded)
        return " ".join(coded)

    return Draft(
        context=context,
        sizes=[1] * (limit * 2),
        fewest=FEWEST,
        # Several words become more frequent at the same count, such as ranks 1, 2, 3, 4, 6 and 12 at 474 words.
        filler=1,
        before=(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words. "
        ),
        after=(
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
            "frequently appeared words in the above coded text?"
        ),
        answer_prefix=(" Answer: According to the coded text above, the three most frequently appeared words are:"),
        references=tuple(vocabulary[1:4]),
        gold=listed(vocabulary[1:4]),
    )


def frequency(rank: int, count: int) -> int:
    """Return how often the word of a rank, from 1, occurs in a text of about ``count`` words."""
    return int(count * rank**-ALPHA / _ZETA)
