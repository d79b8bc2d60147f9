"""Tokenize very long texts in pieces. The token ids are the same as without pieces.

The tokenizers library needs up to 400 bytes for every token of its result. The memory for a whole text would therefore
grow with the text.

1. Encode a piece, with some text after the piece's end.
2. Cut the piece between two tokens. The tokens after the cut must be the tokens of the text after the cut alone.
3. The next piece starts at the cut. The first tokens of the next piece must be the tokens after the cut.

The two checks of tokens prove most cuts. BPE is local: a sequence of tokens is the encoding of its text if every pair
of neighbouring tokens is the encoding of the pair's text. Every pair is inside one of the two pieces. Three facts are
outside the checks, so the module knows them: how the tokenizer splits a text into words (:func:`_is_local`), a long
run of whitespace (:class:`_Whitespace`), and characters that NFC composes or reorders (:func:`_may_compose`). The
module cuts the texts of other tokenizers only at a space between two letters.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

LONG = 2**20
"""A longer text, in characters, is cut into pieces."""

OVERLAP = 2048
"""Characters that a piece sees after its end."""

_PIECES = 4
"""A piece has a quarter of LONG characters. Its tokens take at most 200 MiB, also with four tokens for a character."""

_TRIALS = 32
"""Most places that are tried for one cut."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_SPACES = re.compile(r"\s*")
_NEWLINES = re.compile(r"[\r\n]*")

# The patterns of Llama 3 and Qwen2.5. From any border of two tokens, the rest of a text has the same words as in the
# whole text, apart from whitespace and from digits inside a word of 3 digits.
_LOCAL_PATTERN = re.compile(
    re.escape(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}")
    + r"(\{1,3\})?"
    + re.escape(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
)


def encode_long(tokenizer: Tokenizer, text: str) -> np.ndarray | None:
    """Return the token ids of a long text, uint32 ``[m]``, without the special tokens that the tokenizer adds.

    Args:
        tokenizer: a tokenizer without truncation and padding.
        text: a text of any length. A text of up to :data:`LONG` characters is one piece.

    Returns:
        None if the text cannot be cut: every piece must have a cut that passes the checks.
    """
    if len(text) <= LONG:
        return _ids(tokenizer.encode(text, add_special_tokens=False))
    cuts = _Cuts(tokenizer, text)
    size = max(LONG // _PIECES, 2 * OVERLAP)
    pieces: list[np.ndarray] = []
    start, beyond = 0, np.empty(0, dtype=np.uint32)
    while True:
        end = min(start + size + OVERLAP, len(text))
        encoding = tokenizer.encode(text[start:end], add_special_tokens=False)
        ids_m = _ids(encoding)
        if not np.array_equal(ids_m[: len(beyond)], beyond):
            return None
        if end == len(text):
            return np.concatenate([*pieces, ids_m])
        cut = cuts.find(encoding, ids_m, start, end)
        if cut is None:
            return None
        start, token = cut
        pieces.append(ids_m[:token])
        beyond = ids_m[token : (token + len(ids_m)) // 2]


class _Cuts:
    """Finds the places at which a text may be cut.

    Args:
        tokenizer: the tokenizer.
        text: the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._is_local = _is_local(tokenizer)
        self._composes = tokenizer.normalizer is not None
        self._counts_digits = tokenizer.pre_tokenizer is not None and b"{1,3}" in tokenizer.pre_tokenizer.__getstate__()
        self._is_bpe = _is_plain_bpe(tokenizer)
        self._whitespace = _Whitespace(text)

    def find(self, encoding: Encoding, ids_m: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
        """Return the last cut of the piece ``text[start:end]``: its place in the text and the first token after it.

        None: there is no cut, or the tokens of the text after the cut depend on the text before the cut.
        """
        candidates = (
            self._between_tokens(encoding, start, end) if self._is_local else self._between_words(encoding, start, end)
        )
        for place, token in islice(candidates, _TRIALS):
            alone = self._tokenizer.encode(self._text[place:end], add_special_tokens=False)
            if len(ids_m) - token > 1 and np.array_equal(_ids(alone), ids_m[token:]):
                return place, token
        return None

    def _between_tokens(self, encoding: Encoding, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the borders of two tokens, the last border first."""
        last = _token_at(encoding, end - OVERLAP - start) or 0
        for token in range(last, 0, -1):
            first, before = _characters(encoding, token)[0], _characters(encoding, token - 1)[1]
            place = start + first
            # A character of several tokens has its place in each of them.
            if (
                before <= first
                and not (self._composes and _may_compose(self._text[place]))
                and not (self._is_counted(place) and _is_inside_word(encoding, token))
                and self._whitespace.is_known(place, end)
            ):
                yield place, token

    def _is_counted(self, place: int) -> bool:
        """Return whether a word ends at a number of digits, and the character is a digit."""
        return self._counts_digits and unicodedata.category(self._text[place])[0] == "N"

    def _between_words(self, encoding: Encoding, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the spaces between two letters, the last space first."""
        found = list(_BETWEEN_WORDS.finditer(self._text, max(start + 1, end - 4 * OVERLAP), end - OVERLAP))
        for match in reversed(found):
            token = _token_at(encoding, match.start() - start)
            if token and (self._is_bpe or not _is_inside_word(encoding, token)):
                yield match.start(), token


class _Whitespace:
    """The long runs of whitespace of a text, as the pattern of Llama 3 and Qwen2.5 divides them.

    1. Newlines after a punctuation mark are part of the mark's word.
    2. The rest of the run, up to its last newline, is one word.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = self._end = 0
        """The last long run."""

        self._newlines_end = 0
        """End of the newlines that are part of the word of a punctuation mark."""

        self._last_newline = -1

    def is_known(self, place: int, end: int) -> bool:
        """Return whether a cut and a piece up to ``end`` do not change the words of the run at the cut."""
        text = self._text
        if not text[end - 1].isspace() or _SPACES.match(text, place, end).end() < end:  # type: ignore[union-attr]
            return True  # the piece has the end of the run, and the tokens after the cut are checked
        if not (text[place].isspace() or text[place - 1].isspace()):
            return True
        if not self._start <= place < self._end:
            self._find(place)
        if place < self._newlines_end <= self._last_newline:
            return False
        # A newline near the end of the piece makes the same word, except for the end of the piece.
        seen = text[end - OVERLAP // 2 : end]
        return self._last_newline < end or "\n" in seen or "\r" in seen

    def _find(self, place: int) -> None:
        text, start = self._text, place
        while start and (kept := len(text[max(0, start - OVERLAP) : start].rstrip())) < min(start, OVERLAP):
            start = max(0, start - OVERLAP) + kept
            if kept:
                break
        self._start, self._end = start, _SPACES.match(text, start).end()  # type: ignore[union-attr]
        self._newlines_end = start
        if start and not text[start - 1].isalnum():
            self._newlines_end = _NEWLINES.match(text, start).end()  # type: ignore[union-attr]
        self._last_newline = max(text.rfind(newline, start, self._end) for newline in "\r\n")


def _may_compose(character: str) -> bool:
    """Return whether NFC may compose or reorder a character with the characters before it.

    Marks and Hangul letters do. So do a few letters of rare scripts beyond the first 2^16 characters.
    """
    code = ord(character)
    is_jamo = 0x1100 <= code <= 0x11FF or 0xA960 <= code <= 0xA97F or 0xD7B0 <= code <= 0xD7FF
    is_rare = 0x10000 <= code < 0x1F000
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cn") or is_jamo or is_rare


def _is_inside_word(encoding: Encoding, token: int) -> bool:
    """Return whether a token and the token before it are of one word. A number may be divided in words of 3 digits."""
    return encoding.token_to_word(token) == encoding.token_to_word(token - 1)


def _is_local(tokenizer: Tokenizer) -> bool:
    """Return whether the tokens of a text follow from the tokens of its pieces, for cuts between any two tokens."""
    if not _is_plain_bpe(tokenizer):
        return False
    normalizer, pre_tokenizer = (_state(part) for part in (tokenizer.normalizer, tokenizer.pre_tokenizer))
    if normalizer is not None and normalizer["type"] != "NFC":
        return False
    if any(
        token.lstrip or token.rstrip or token.single_word for token in tokenizer.get_added_tokens_decoder().values()
    ):
        return False
    if pre_tokenizer is None:
        return True
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return all(_is_local_step(step) for step in steps)


def _is_plain_bpe(tokenizer: Tokenizer) -> bool:
    """Return whether the model is BPE without marks at the start or the end of words."""
    model = tokenizer.model
    return isinstance(model, BPE) and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)


def _is_local_step(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex", "")
        isolated = step["behavior"] == "Isolated" and not step["invert"]
        return isolated and _LOCAL_PATTERN.fullmatch(pattern) is not None
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _ids(encoding: Encoding) -> np.ndarray:
    return np.array(encoding.ids, dtype=np.uint32)


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    """Return the first character of a token and the first character after the token."""
    characters = encoding.token_to_chars(token)
    assert characters is not None
    return characters


def _token_at(encoding: Encoding, character: int) -> int | None:
    """Return the index of the character's token.

    A space may have no token. Return then the index of the next token, or None if the next token is far away.
    """
    for position in range(character, character + OVERLAP // 4):
        if (token := encoding.char_to_token(position)) is not None:
            return token
    return None
