"""Very long texts to token ids a piece at a time, the same ids as in one piece.

The tokenizers library needs some 400 bytes for a token that it makes, and more than proportional time for a text of
many megabytes. Nearly all tokenizers split a text into words before they look for tokens, so a text may be cut between
two words. Whether a tokenizer does so is not asked but seen: every piece goes on beyond its end, and the tokens there
must be those that the next piece begins with.
"""

import re
from itertools import pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer

LONG = 2**20
"""Characters of a text that is cut, and about those of a piece."""

OVERLAP = 4096
"""Characters of the next piece that a piece goes on with."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_AT_ONCE = 4


def encode_long(tokenizer: Tokenizer, text: str) -> np.ndarray | None:
    """Token ids of a long text, int64 ``[m]``, without the tokenizer's own special tokens.

    Args:
        tokenizer: without truncation and padding.
        text: of any length; one of up to :data:`LONG` characters is one piece.

    Returns:
        None for a text or a tokenizer that cannot be cut: there is no space between letters for long, or the tokens on
        the two sides of one depend on each other.
    """
    cuts = [0]
    while len(text) - cuts[-1] > LONG + OVERLAP:
        found = _BETWEEN_WORDS.search(text, cuts[-1] + LONG - OVERLAP, cuts[-1] + LONG)
        if found is None:
            return None
        cuts.append(found.start())
    spans = list(pairwise([*cuts, len(text)]))
    pieces = []
    beyond = np.empty(0, dtype=np.int64)
    for first in range(0, len(spans), _AT_ONCE):
        group = spans[first : first + _AT_ONCE]
        texts = [text[start : end + OVERLAP] for start, end in group]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        for (start, end), encoding in zip(group, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            if not np.array_equal(ids[: len(beyond)], beyond):
                return None
            if end == len(text):
                pieces.append(ids)
                continue
            cut, middle = (_token_at(encoding, end - start + further) for further in (0, OVERLAP // 2))
            if cut is None or middle is None:
                return None
            pieces.append(ids[:cut])
            beyond = ids[cut:middle]
    return np.concatenate(pieces)


def _token_at(encoding: Encoding, character: int) -> int | None:
    """The token that a character is in, or where it is in none, as a space may be, the next one."""
    for position in range(character, character + OVERLAP // 4):
        if (token := encoding.char_to_token(position)) is not None:
            return token
    return None
