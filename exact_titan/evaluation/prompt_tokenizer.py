"""The tokenizer of the evaluated model: counts tokens, adds the template, and finds the tokens of an answer."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from exact_titan.documents.templates import ChatTemplate, dolly_prompt
from exact_titan.documents.tokenizer import FILE_NAME, load_tokenizer
from exact_titan.errors import InputError
from exact_titan.evaluation.options import Template
from exact_titan.system.json_files import read_optional_object


class PromptTokenizer:
    """A Hugging Face tokenizer folder, read without transformers.

    Args:
        folder: the folder with ``tokenizer.json``.
        template: the text around every prompt.

    Attributes:
        sha256: digest of the ``tokenizer.json``.
        template: the text around every prompt.

    Raises:
        InputError: if the folder has no tokenizer, or no chat template although ``template`` is ``chat``.
    """

    def __init__(self, folder: Path, template: Template = "plain") -> None:
        file = folder / FILE_NAME
        if not file.is_file():
            raise InputError(f"{folder} has no {FILE_NAME}: name a folder with a model and its tokenizer")
        self.folder = folder
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.template: Template = template
        self._tokenizer = load_tokenizer(file)
        self._chat = ChatTemplate.of(folder) if template == "chat" else None

    def wrap(self, body: str, answer_prefix: str = "") -> str:
        """Return the prompt: the body in the template, and after the template the first words of the answer.

        A template that ends with white space, such as the line break after Dolly's ``### Response:``, replaces the
        white space at the beginning of the answer's first words.
        """
        if self.template == "plain":
            return body + answer_prefix
        if self.template == "dolly":
            wrapped = dolly_prompt(body)
        else:
            assert self._chat is not None
            wrapped = self._chat.prompt([{"role": "user", "content": body}])
        return wrapped + (answer_prefix.lstrip() if wrapped[-1:].isspace() else answer_prefix)

    @property
    def chat_template_sha256(self) -> str | None:
        """Digest of the chat template, which ``tokenizer.json`` does not contain. None: no chat template is used."""
        return hashlib.sha256(self._chat.text.encode("utf-8")).hexdigest() if self._chat else None

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds its special tokens to a prompt. A chat template has written them already."""
        return self.template != "chat"

    def encode(self, text: str, special_tokens: bool | None = None) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            text: the prompt. A text that begins with the BOS token does not get a second BOS.
            special_tokens: whether the tokenizer adds its special tokens. None: as the template of this object needs.
        """
        added = self.special_tokens if special_tokens is None else special_tokens
        added = added and (self._bos is None or not text.startswith(self._bos))
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=added)[0].ids

    def without_bos(self, text: str) -> str:
        """Return a prompt without a leading BOS token, for a server whose tokenizer adds the token."""
        return text if self._bos is None else text.removeprefix(self._bos)

    def count(self, text: str) -> int:
        """Return the number of token ids of a prompt."""
        return len(self.encode(text))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of token ids of each text, without special tokens. The texts are encoded in parallel."""
        return [len(one.ids) for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the first letter of every token of a text and the letter after the token, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def split(self, prompt: str, continuation: str, special_tokens: bool | None = None) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of the text after the prompt.

        Spaces at the end of the prompt count for the continuation, because tokenizers join a space with the next word.
        The division is that of lm-eval (``TemplateLM._encode_pair``). ``special_tokens`` is as in :meth:`encode`.
        """
        spaces = len(prompt) - len(prompt.rstrip())
        if spaces:
            continuation = prompt[-spaces:] + continuation
            prompt = prompt[:-spaces]
        before, whole = self.encode(prompt, special_tokens), self.encode(prompt + continuation, special_tokens)
        return before, whole[len(before) :]

    def special_token_in(self, text: str) -> str | None:
        """Return a special token that the letters of a text spell. None: the text spells none."""
        return next((token for token in self._special_tokens if token in text), None)

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        return tuple(one.content for one in self._tokenizer.get_added_tokens_decoder().values() if one.special)

    @cached_property
    def _bos(self) -> str | None:
        file = self.folder / "tokenizer_config.json"
        token = read_optional_object(file, way_out="copy the file again").get("bos_token")
        return token.get("content") if isinstance(token, dict) else token
