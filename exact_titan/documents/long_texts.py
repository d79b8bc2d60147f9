"""Tokenize very long texts in pieces. The token ids are the same as without pieces.

The tokenizers library needs about 400 bytes for every token of its result. The time for a text of many megabytes grows
faster than the length of the text. Nearly all tokenizers split a text into words before they look for tokens. A text
may therefore be cut between two words.

The module checks every cut, because a tokenizer may not split at words. Every piece overlaps the next piece. The tokens
in the overlap must be equal in both pieces.
"""

import re
from itertools import pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer

LONG = 2**20
"""A longer text, in characters, is cut into pieces of about this length."""

OVERLAP = 4096
"""Overlap of a piece with the next piece, in characters."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_AT_ONCE = 4


def encode_long(tokenizer: Tokenizer, text: str) -> np.ndarray | None:
    """Return the token ids of a long text, int64 ``[m]``, without the special tokens that the tokenizer adds.

    Args:
        tokenizer: a tokenizer without truncation and padding.
        text: a text of any length. A text of up to :data:`LONG` characters is one piece.

    Returns:
        None if the text cannot be cut: the text has a long stretch without a space between two letters, or the tokens
        on the two sides of a space depend on each other.
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
    """Return the index of the character's token.

    A space may have no token. Return then the index of the next token, or None if the next token is far away.
    """
    for position in range(character, character + OVERLAP // 4):
        if (token := encoding.char_to_token(position)) is not None:
            return token
    return None
