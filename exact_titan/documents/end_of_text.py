"""The end-of-text token of a tokenizer: the token at the end of every document."""

from collections.abc import Mapping
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.system.json_files import read_optional_object

# Base models are pretrained with these tokens at the end of a document. The eos_token of a chat tokenizer ends a
# message instead: <|eot_id|> of Llama 3, <|im_end|> of Qwen.
END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>")
OTHER_EOS = ("</s>", "<eos>")


def end_of_text(file: Path, vocabulary: Mapping[str, int], given: str | None) -> str:
    """Return the token that ends every document.

    1. The given token.
    2. A token of :data:`END_OF_TEXT`.
    3. ``eos_token`` of ``tokenizer_config.json``.
    4. A token of :data:`OTHER_EOS`.

    Args:
        file: the ``tokenizer.json``.
        vocabulary: the ids of its tokens.
        given: the token of the command line. None: no token is given.

    Raises:
        InputError: if the tokenizer has no such token, or if ``tokenizer_config.json`` cannot be read.
    """
    if given is not None:
        if given not in vocabulary:
            raise InputError(
                f"--eos-token {given!r} is not in the vocabulary of {file}: name a token of the vocabulary"
            )
        return given
    for known in END_OF_TEXT:
        if known in vocabulary:
            return known
    config = file.parent / "tokenizer_config.json"
    token = read_optional_object(config, way_out="name the token with --eos-token").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None:
        if not isinstance(token, str):
            raise InputError(f"{config}: eos_token is {token!r:.60}, not a text: name the token with --eos-token")
        if token not in vocabulary:
            raise InputError(f"{config}: eos_token {token!r} is not in the vocabulary: see --eos-token")
        return token
    for known in OTHER_EOS:
        if known in vocabulary:
            return known
    raise InputError(f"{file} names no end-of-text token: name it with --eos-token")
