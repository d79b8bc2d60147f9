"""Convert texts to token ids with any Hugging Face tokenizer."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from exact_titan.documents import panics
from exact_titan.documents.end_of_text import end_of_text
from exact_titan.documents.git_lfs import refuse_pointer
from exact_titan.documents.hub import hub_hint
from exact_titan.documents.long_texts import LONG, encode_long
from exact_titan.documents.special_tokens import SpecialTokens, SpelledTokens, mark_special_tokens, with_letters
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError
from exact_titan.system.folder_files import check_inside, checked_content
from exact_titan.system.json_files import LARGEST_BYTES

FILE_NAME = "tokenizer.json"
EXTRA_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_tokenizer(file: Path) -> Tokenizer:
    """Load the tokenizer of a ``tokenizer.json``.

    Raises:
        InputError: if the file is missing or does not load.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: copy the dataset again or pack it again")
    try:
        content = _read(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}: give the right to read it") from error
    return _parse(content, file)[0]


def _read(file: Path) -> bytes:
    refuse_pointer(file, str(file))
    with file.open("rb") as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise InputError(f"{file} has more than {LARGEST_BYTES:,} bytes, and no tokenizer is as large: copy it again")
    return content


@lru_cache(maxsize=1)
def _parse(content: bytes, file: Path, special_tokens: SpecialTokens | None = None) -> tuple[Tokenizer, dict[str, int]]:
    """Return the tokenizer and its vocabulary.

    The result is cached, because a large tokenizer takes a second to load and packing loads the tokenizer twice.
    ``special_tokens`` is None for a tokenizer that does not encode documents.
    """
    try:
        with panics.unreported():
            tokenizer = Tokenizer.from_str(content.decode("utf-8-sig"))
    except BaseException as error:
        if not panics.is_of_library(error):
            raise
        raise InputError(
            f"{file} is not a Hugging Face {FILE_NAME} ({panics.reason(error)}): copy or write it again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = special_tokens == "text"
    if isinstance(tokenizer.model, BPE):
        # Dropout belongs to the training of a model. The same text must have the same ids.
        tokenizer.model.dropout = None
    return tokenizer, tokenizer.get_vocab(with_added_tokens=True)


class DocumentTokenizer:
    """A tokenizer that ends every document with the end-of-text token.

    Args:
        path: a Hugging Face tokenizer folder, or its ``tokenizer.json``.
        eos_token: the end-of-text token. The default is the first existing token of this list: ``<|end_of_text|>`` in
            the vocabulary, ``<|endoftext|>`` in the vocabulary, ``eos_token`` of ``tokenizer_config.json``, ``</s>``
            in the vocabulary, ``<eos>`` in the vocabulary.
        special_tokens: ``text``: a special token that a document spells stays text. A document about language models
            would otherwise have control tokens in its middle. ``ids``: a spelled special token becomes its id. Special
            are the tokens that the tokenizer marks as special, the end-of-text token, and added tokens ``<|…|>``.

    Attributes:
        record: the tokenizer's record in the manifest.
        dtype: uint16 if every id fits, else uint32.

    Raises:
        InputError: if the path has no tokenizer, the tokenizer does not load, the tokenizer has no end-of-text token,
            or a file of its folder is a link out of the folder or is not what its name says.
    """

    def __init__(self, path: Path, eos_token: str | None = None, special_tokens: SpecialTokens = "text") -> None:
        self.file = path / FILE_NAME if path.is_dir() else path
        if not path.exists():
            hint = hub_hint(
                str(path), "--tokenizer takes a folder: hf download {} --include '*token*' --local-dir FOLDER"
            )
            raise InputError(f"--tokenizer {path}: no such file or folder{hint}")
        if not self.file.is_file():
            raise InputError(
                f"--tokenizer {path}: the folder has no {FILE_NAME}: write one with "
                "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            )
        folder = self.file.parent
        try:
            if path.is_dir():  # a path of the user's own may be a link to any file
                check_inside(folder, self.file)
            content = _read(self.file)
            extra = [name for name in EXTRA_FILES if (folder / name).is_file()]
            self._files = {FILE_NAME: content} | {name: checked_content(folder, folder / name) for name in extra}
        except OSError as error:
            raise InputError(f"--tokenizer {error.filename or self.file} cannot be read: {error.strerror}") from error
        self._tokenizer, vocabulary = _parse(content, self.file, special_tokens)
        self.record = TokenizerRecord(
            name=self.file.resolve().parent.name,
            sha256=hashlib.sha256(content).hexdigest(),
            vocab_size=max(vocabulary.values(), default=0) + 1,
            eos_token=(eos := end_of_text(self.file, vocabulary, eos_token)),
            eos_id=vocabulary[eos],
        )
        self.dtype = np.dtype(np.uint16 if self.record.vocab_size <= 2**16 else np.uint32)
        special = mark_special_tokens(self._tokenizer, eos)
        self._spelled = SpelledTokens(special)
        self._try_out()
        if special_tokens == "text":
            self._tokenizer = with_letters(self._tokenizer, special)
        self._keeps_ids = special_tokens == "ids"

    def _try_out(self) -> None:
        """Encode a text, so that a broken tokenizer is refused before the documents are read.

        A tokenizer without an unknown token may not know the letters of the text.
        """
        try:
            with panics.unreported():
                self._tokenizer.encode_batch_fast(["a b\n", "ab"])
                added = [one for ids in self._special_tokens or () for one in ids]
        except BaseException as error:
            if isinstance(error, Exception):
                return
            if not panics.is_of_library(error):
                raise
            raise InputError(
                f"{self.file} is broken: the tokenizers library fails with it ({panics.reason(error)}): copy it again"
            ) from error
        if added and max(added) >= self.record.vocab_size:
            raise InputError(
                f"{self.file} is broken: its post_processor adds the id {max(added)}, and its vocabulary has "
                f"{self.record.vocab_size} ids: copy it again"
            )

    def spells_special(self, text: str) -> bool:
        """Return whether the text spells a special token."""
        return self._spelled.are_in(text)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text, ``dtype`` ``[m]``.

        The ids include the special tokens that the tokenizer adds. A text that brings the same special tokens at its
        start or end (``special_tokens="ids"``) does not get them twice. The last id is the end-of-text id.

        Several threads may call the method at the same time, because the library releases the interpreter lock during
        its work.

        Raises:
            InputError: if the tokenizer has no unknown token and meets an unknown letter.
        """
        try:
            return self._encode(texts)
        except BaseException as error:
            if not panics.is_of_library(error):
                raise
            raise self._cannot_encode(texts, error) from error

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if all(len(text) <= LONG for text in texts):
            return [self._ended(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts)]
        return [self._encode_long(text) if len(text) > LONG else self._encode([text])[0] for text in texts]

    def _cannot_encode(self, texts: Sequence[str], error: BaseException) -> InputError:
        """Return the error for a tokenizer without an unknown token that meets an unknown letter."""
        for text in texts:
            try:
                self._encode([text])
            except BaseException as wrong:
                if not panics.is_of_library(wrong):
                    raise
                return InputError(
                    f"{self.file} cannot encode the document that begins with {text[:40]!r} ({panics.reason(wrong)}): "
                    "give a --tokenizer with an unknown token or byte fallback"
                )
        return InputError(
            f"{self.file} cannot encode a batch of documents ({panics.reason(error)}): give another --tokenizer"
        )

    def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without the special tokens that the tokenizer adds to a text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_letters(self, text: str) -> list[int]:
        """Return the token ids of a text as :meth:`encode_bare` does, but special tokens in the text stay letters."""
        return self._letters_tokenizer.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        """Return the id of a token. None if the vocabulary does not have the token."""
        return self._tokenizer.token_to_id(token)

    @cached_property
    def special_tokens(self) -> list[str]:
        """The texts of the special tokens: the tokens that the tokenizer finds in a text and marks as special."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return sorted({self.record.eos_token} | {token.content for token in added if token.special})

    @property
    def added_before(self) -> list[int]:
        """The ids that the tokenizer adds before every text."""
        return list(self._special_tokens[0]) if self._special_tokens is not None else []

    @cached_property
    def _letters_tokenizer(self) -> Tokenizer:
        # The setting belongs to the tokenizer, and several threads use the other tokenizer.
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        return with_letters(tokenizer, self.special_tokens)

    def _encode_long(self, text: str) -> np.ndarray:
        """Encode a long text as :meth:`encode` does.

        If the text can be cut, memory and time are proportional to the length of the text.
        """
        ids = encode_long(self._tokenizer, text) if self._special_tokens is not None else None
        if ids is None:
            return self._ended(self._tokenizer.encode_batch_fast([text])[0].ids)
        before, after = (np.array(added, dtype=self.dtype) for added in self._special_tokens or ([], []))
        return self._ended(np.concatenate([before, ids.astype(self.dtype), after]))

    @cached_property
    def _special_tokens(self) -> tuple[list[int], list[int]] | None:
        """The ids that the tokenizer adds before and after every text. None if the tokenizer changes other ids too."""
        text = "a"
        bare = self._tokenizer.encode(text, add_special_tokens=False).ids
        whole = self._tokenizer.encode(text).ids
        for first in range(len(whole) - len(bare) + 1):
            if whole[first : first + len(bare)] == bare:
                return whole[:first], whole[first + len(bare) :]
        return None

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a new folder. torchtitan and transformers can load the folder.

        The files have the content that they had when the tokenizer was loaded.
        """
        folder.mkdir()
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def _ended(self, ids: list[int] | np.ndarray) -> np.ndarray:
        """Return the ids with an end-of-text id at the end. Special tokens that the text brings are not doubled."""
        ids_m = np.array(ids, dtype=self.dtype)
        if self._keeps_ids and self._special_tokens is not None:
            before, after = self._special_tokens
            if before and ids_m[: 2 * len(before)].tolist() == before * 2:
                ids_m = ids_m[len(before) :]
            if after and ids_m[-2 * len(after) :].tolist() == after * 2:
                ids_m = ids_m[: -len(after)]
        if not len(ids_m) or ids_m[-1] != self.record.eos_id:
            ids_m = np.append(ids_m, np.array(self.record.eos_id, self.dtype))
        return ids_m
