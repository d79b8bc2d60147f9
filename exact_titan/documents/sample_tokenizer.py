"""Convert samples of instructions to token ids, and find the number of first labels without a loss."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exact_titan.documents.instructions import Sample, Turns
from exact_titan.documents.special_letters import SpecialLetters
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError


class TokenizedSample(NamedTuple):
    """Token ids of a sample, ``[m]``, and the number of first labels without a loss, less than m - 1.

    The first label with a loss is the first token of the response. The last label is the end-of-text token.
    """

    ids_m: np.ndarray
    unsupervised: int


class SampleTokenizer:
    """Tokenizes prompt and response separately.

    The ids of a prompt are therefore the ids that evaluation and inference make of the prompt. No token spans the
    border between prompt and response, and no token of the prompt is supervised. Special tokens of the template become
    the tokenizer's own ids. Letters of a sample that spell a special token stay letters.

    Args:
        tokenizer: the tokenizer.
        template: the template that renders the samples.

    Attributes:
        template: the template.
        letters: marks the letters of special tokens.
    """

    def __init__(self, tokenizer: DocumentTokenizer, template: Turns) -> None:
        self._tokenizer, self.template = tokenizer, template
        self.letters = SpecialLetters(tokenizer.special_tokens)
        self._begin = tokenizer.added_before if template.adds_special_tokens else []
        self._newline = tokenizer.encode_bare(["\n"])[0]

    def encode(self, samples: Sequence[Sample]) -> list[TokenizedSample]:
        """Return the token ids of each sample. The last id is the end-of-text id.

        Raises:
            InputError: if the tokenizer makes a special token from plain letters. The error names file and row.
        """
        pieces = [
            (number, part, text, is_letters)
            for number, sample in enumerate(samples)
            for part, whole in enumerate((sample.prompt, sample.response))
            for text, is_letters in self.letters.pieces(whole)
        ]
        begins = [index == 0 or pieces[index - 1][0] != piece[0] for index, piece in enumerate(pieces)]
        plain = iter(
            self._encode([(piece[2], first) for piece, first in zip(pieces, begins, strict=True) if not piece[3]])
        )
        parts: list[tuple[list[int], list[int]]] = [(list(self._begin), []) for _ in samples]
        for number, part, text, is_letters in pieces:
            try:
                parts[number][part].extend(self._encode_letters(text) if is_letters else next(plain))
            except InputError as error:
                raise InputError(f"{samples[number].where}: {error}") from error
        return [self._joined(prompt, response) for prompt, response in parts]

    def _joined(self, prompt: list[int], response: list[int]) -> TokenizedSample:
        eos = self._tokenizer.record.eos_id
        ids = [*prompt, *response, *([] if response and response[-1] == eos else [eos])]
        return TokenizedSample(np.array(ids, dtype=self._tokenizer.dtype), max(0, len(prompt) - 1))

    def _encode(self, pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Encode pieces. The flag says that the piece begins a sample.

        A later piece stands in a text. Tokenizers that add a space to the start of a text would add the space to the
        piece too. The piece is therefore encoded after a newline, and the ids of the newline are removed. If newline
        and piece share a token, the piece is encoded alone. transformers 5 does the same (``encode_marked_chat``).
        """
        encoded = self._tokenizer.encode_bare([text if begins else f"\n{text}" for text, begins in pieces])
        n = len(self._newline)
        for index, (text, begins) in enumerate(pieces):
            if not begins and encoded[index][:n] == self._newline:
                encoded[index] = encoded[index][n:]
            elif not begins:
                encoded[index] = self._tokenizer.encode_bare([text])[0]
        return encoded

    def _encode_letters(self, text: str) -> list[int]:
        ids = self._tokenizer.encode_letters(f"\n{text}")
        n = len(self._newline)
        ids = ids[n:] if ids[:n] == self._newline else self._tokenizer.encode_letters(text)
        if self._tokenizer.id_of(text) in ids:
            raise InputError(
                f"the text spells the special token {text!r}, and the tokenizer makes this token from plain letters: "
                "remove the row"
            )
        return ids
