"""The record of a tokenizer in the manifest of a packed dataset. The module imports no tokenizer library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizerRecord:
    """A tokenizer.

    Attributes:
        name: name of the folder of its ``tokenizer.json``.
        sha256: digest of that ``tokenizer.json``, in hex.
        vocab_size: the highest token id + 1, with added tokens.
        eos_token: the end-of-text token. Every document ends with this token.
        eos_id: the id of ``eos_token``.
    """

    name: str
    sha256: str
    vocab_size: int
    eos_token: str
    eos_id: int
