"""The sequences of one batch: where their tokens stand in the cache, and what is measured after each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from exact_titan.errors import InputError
from exact_titan.evaluation.engines.kv_cache import BufferCache
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer


@dataclass(frozen=True)
class Continued:
    """A prompt with a continuation.

    Attributes:
        ids: the token ids of the prompt and of the continuation.
        scored: index of the first token of the continuation.
        kept: number of first ids that are also the first ids of the prompt alone. At least one token before ``scored``
            is not among them, unless all tokens of the prompt are.
    """

    ids: list[int]
    scored: int
    kept: int


class Batch:
    """The token ids of the prompts and continuations of a batch.

    Attributes:
        ids: the token ids of every prompt.
        continued: the continuations of every prompt.
        back: number of last tokens of every prompt that a continuation may replace. 0 unless a prompt ends with a
            space, which belongs to the first token of the continuation.

    Raises:
        InputError: if a prompt has no token.
    """

    def __init__(self, tokenizer: PromptTokenizer, examples: Sequence[Example]) -> None:
        self.ids = [tokenizer.encode(one.prompt, one.special_tokens) for one in examples]
        self.continued = [
            [self._continued(tokenizer, ids, one, text) for text in one.continuations]
            for ids, one in zip(self.ids, examples, strict=True)
        ]
        self.back = max(
            (len(ids) - one.kept for ids, some in zip(self.ids, self.continued, strict=True) for one in some), default=0
        )

    @staticmethod
    def _continued(tokenizer: PromptTokenizer, ids: list[int], example: Example, text: str) -> Continued:
        before, after = tokenizer.split(example.prompt, text, example.special_tokens)
        if not before:
            raise InputError(f"{example.id}: the prompt has no token: write a text into the prompt")
        whole = before + after
        kept = shared_length(whole, ids)
        return Continued(whole, len(before), kept if kept == len(ids) == len(before) else min(kept, len(before) - 1))


class Rows:
    """A cache with one sequence a row. Shorter rows have padding between the shared prefix and their own tokens.

    Args:
        cache: the cache, which holds the shared prefix.
        lengths: number of tokens of every prompt.

    Attributes:
        cache: the cache.
        tail: number of slots after the shared prefix that the longest prompt needs.
        padding: number of slots without a token of every row.
    """

    def __init__(self, cache: BufferCache, lengths: Sequence[int]) -> None:
        self.cache = cache
        self._shared = cache.length
        self.tail = max(lengths) - self._shared
        self.padding = [max(lengths) - one for one in lengths]

    def places(self, tokens: int, device: torch.device) -> dict[str, Any]:
        """Return the attention mask and the positions of the next ``tokens`` slots, as arguments of the model.

        Nothing is returned if no row has padding. The model then uses the length of the cache.
        """
        if not any(self.padding):
            return {}
        start, end = self.cache.length, self.cache.length + tokens
        slots = torch.arange(end, device=device)
        pad = torch.tensor(self.padding, device=device)[:, None]
        seen = (slots < self._shared) | (slots >= self._shared + pad)
        return {"attention_mask": seen.long(), "position_ids": (slots[start:] - pad).clamp(min=0)}


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of first token ids that two sequences share."""
    return next(
        (k for k, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), min(len(one), len(other))
    )
