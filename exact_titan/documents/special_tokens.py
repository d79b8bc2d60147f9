"""Special tokens that a document spells in its text, such as ``<|end_of_text|>`` in a text about language models."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.models import BPE

SpecialTokens = Literal["text", "ids"]
"""``text``: a special token that a document spells stays text. ``ids``: the special token becomes its id."""

# Code points that are no characters.
_NO_TEXT = "\uffff\ufffe"
# Some tokenizers do not mark these control tokens as special: <|fim_prefix|> and <|repo_name|> of Qwen2.5.
_CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)


def mark_special_tokens(tokenizer: Tokenizer, eos_token: str) -> list[str]:
    """Mark all control tokens of a tokenizer as special, and return the special tokens.

    Control tokens are the end-of-text token and the added tokens ``<|…|>``. The ids do not change.
    """
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    tokenizer.add_special_tokens([token for token in added if token == eos_token or _CONTROL.fullmatch(token)])
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def with_letters(tokenizer: Tokenizer, tokens: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that encodes the special tokens ``tokens`` of a text as letters.

    The setting ``encode_special_tokens`` is not enough for every tokenizer. A model may have a special token in its own
    vocabulary, and find the token in the letters: Unigram, WordLevel and WordPiece do so, BPE with ``ignore_merges``,
    and BPE that was trained on texts with the token. The result then is a copy without these tokens in the vocabulary
    of the model. All other ids are the same.

    Args:
        tokenizer: a tokenizer with the setting ``encode_special_tokens``.
        tokens: the special tokens.
    """
    if not _finds(tokenizer, tokens):
        return tokenizer
    content = json.loads(tokenizer.to_str())
    _hide(content["model"], set(tokens))
    letters = Tokenizer.from_str(json.dumps(content))
    letters.encode_special_tokens = True
    return letters


def _finds(tokenizer: Tokenizer, tokens: Iterable[str]) -> bool:
    """Return whether the model of the tokenizer can find a special token in the letters of a text."""
    ids = {token: number for token in tokens if (number := tokenizer.model.token_to_id(token)) is not None}
    if not isinstance(tokenizer.model, BPE):
        return bool(ids)
    # The search costs less than a copy. A special token is a word for itself in one of these texts, or part of a word.
    texts = [(number, text) for token, number in ids.items() for text in (token, f"a {token} a", f"a{token}a")]
    try:
        encoded = tokenizer.encode_batch_fast([text for _, text in texts], add_special_tokens=False)
    except Exception:  # a letter is unknown
        return True
    return any(number in one.ids for (number, _), one in zip(texts, encoded, strict=True))


def _hide(model: dict[str, Any], tokens: set[str]) -> None:
    """Give the tokens in a model's vocabulary other texts. No document has these texts."""
    tokens = tokens - {model.get("unk_token")}  # the model needs its unknown token
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: (text, score)
        model["vocab"] = [[_hidden(text) if text in tokens else text, score] for text, score in vocabulary]
        return
    model["vocab"] = {_hidden(text) if text in tokens else text: number for text, number in vocabulary.items()}
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not tokens & {*pair, "".join(pair)}]


def _hidden(text: str) -> str:
    return f"{_NO_TEXT}{text}"


class SpelledTokens:
    """Finds texts that spell one of the tokens. The search costs less than 1 % of the time of tokenizing."""

    def __init__(self, tokens: Iterable[str]) -> None:
        by_start: dict[str, list[str]] = defaultdict(list)
        for token in filter(None, tokens):
            by_start[token[:2]].append(re.escape(token))
        self._patterns = {start: re.compile("|".join(group)) for start, group in by_start.items()}

    def are_in(self, text: str) -> bool:
        """Return whether the text spells a token."""
        # The search for two fixed characters is much faster than the search for the pattern.
        return any(start in text and pattern.search(text) for start, pattern in self._patterns.items())
