"""Special tokens that a document spells in its text, such as ``<|end_of_text|>`` in a text about language models."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer

SpecialTokens = Literal["text", "ids"]
"""``text``: a special token that a document spells stays text. ``ids``: the special token becomes its id."""

# Some tokenizers do not mark these control tokens as special: <|fim_prefix|> and <|repo_name|> of Qwen2.5.
_CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)


def mark_special_tokens(tokenizer: Tokenizer, eos_token: str) -> list[str]:
    """Mark all control tokens of a tokenizer as special, and return the special tokens.

    Control tokens are the end-of-text token and the added tokens ``<|…|>``. The ids do not change.
    """
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    tokenizer.add_special_tokens([token for token in added if token == eos_token or _CONTROL.fullmatch(token)])
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


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
