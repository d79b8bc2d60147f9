"""Haystacks: the text around the evidence of a prompt.

A prose haystack comes from a folder of texts that the user names. The default is a selection of public-domain chapters
in this package (``data/README.md``). The noise haystack repeats five sentences.
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from exact_titan.errors import InputError
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""The sentences of the noise haystack of RULER, in their order."""

_ABBREVIATIONS = {
    "Mr.",
    "Mrs.",
    "Ms.",
    "Dr.",
    "St.",
    "Messrs.",
    "Esq.",
    "Capt.",
    "Col.",
    "Gen.",
    "vol.",
    "e.g.",
    "i.e.",
}
_CLOSING = "\"'”’)]"


@dataclass(frozen=True)
class Texts:
    """The texts of a prose haystack.

    Attributes:
        names: file name, or book and chapter, of every text.
        texts: the texts, in the order of their names in a folder.
        sha256: digest of the names and the texts.
        note: a sentence for reports that names the texts.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    sha256: str
    note: str


def read_texts(folder: Path | None, tokenizer: PromptTokenizer) -> Texts:
    """Read the texts of a prose haystack.

    Args:
        folder: a folder with ``.txt`` files in UTF-8. Each file is one text. None: the chapters of this package.
        tokenizer: the tokenizer of the model. The letters of a text may not spell one of its special tokens.

    Raises:
        InputError: naming the folder or the file, if the folder has no texts, a file is not UTF-8, or a text spells a
            special token.
    """
    if folder is None:
        packed = files("exact_titan.evaluation").joinpath("data/chapters.jsonl.gz").read_bytes()
        records = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
        found = {f"{one['title']}, {one['chapter']}": one["text"] for one in records}
        note = (
            f"The prose haystack is {len(found)} public-domain chapters of this package. "
            f"Scores on another haystack are not comparable."
        )
    else:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: name a folder with .txt files")
        found = {file.name: _read(file) for file in sorted(folder.glob("*.txt"))}
        if not any(text.strip() for text in found.values()):
            raise InputError(f"{folder} has no text in .txt files: name a folder with .txt files")
        note = (
            f"The prose haystack is {len(found)} texts of {folder.name}. Scores on another haystack are not comparable."
        )
    for name, text in found.items():
        if token := tokenizer.special_token_in(text):
            where = f"{folder}/{name}" if folder else name
            raise InputError(f"{where}: the text spells the special token {token}: remove the token from the text")
    digest = hashlib.sha256(json.dumps(found, ensure_ascii=False).encode("utf-8")).hexdigest()
    return Texts(tuple(found), tuple(found.values()), digest, note)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}): convert the file") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None


def ends_sentence(word: str) -> bool:
    """Return whether a word of running text ends a sentence. ``Mr.`` and an initial such as ``J.`` end no sentence."""
    bare = word.rstrip(_CLOSING)
    if not bare.endswith((".", "!", "?")):
        return False
    return bare.lstrip("(“\"'‘[") not in _ABBREVIATIONS and not (
        len(bare) == 2 and bare[0].isupper() and bare[0] != "I"
    )


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, with single spaces between words. The sentences joined by spaces are the text."""
    sentences: list[str] = []
    start, words = 0, text.split()
    for end, word in enumerate(words, start=1):
        if ends_sentence(word) or end == len(words):
            sentences.append(" ".join(words[start:end]))
            start = end
    return sentences


class Prose:
    """Running text that is cut after any word, with places for needles between its sentences.

    Args:
        texts: the texts. The texts follow each other in their order, and repeat when a prompt needs more words.
        tokenizer: the tokenizer of the model.

    Attributes:
        words: the words of all texts, ``[words]``.
        sizes: approximate tokens of each word, int64 ``[words]``.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PromptTokenizer) -> None:
        self.words = [word for text in texts for word in text.split()]
        known = sorted(set(self.words))
        size = dict(zip(known, tokenizer.counts([f" {word}" for word in known]), strict=True))
        self.sizes = np.array([size[word] for word in self.words], dtype=np.int64)
        self._ends = [end for end, word in enumerate(self.words, start=1) if ends_sentence(word)]

    def sizes_up_to(self, tokens: int) -> np.ndarray:
        """Return the sizes of at least as many words as ``tokens`` tokens need. The words repeat."""
        repeats = -(-tokens // max(int(self.sizes.sum()), 1)) + 1
        return np.tile(self.sizes, repeats)

    def with_needles(self, count: int, needles: Sequence[tuple[float, str]]) -> str:
        """Return the first ``count`` words as sentences, with every needle at its depth between two sentences.

        Args:
            count: number of words.
            needles: pairs of a depth and a sentence. Depth 0 is before the first sentence, depth 1 after the last. The
                last sentence may be incomplete, because the text ends with a word.
        """
        whole, rest = divmod(count, len(self.words))
        words = self.words * whole + self.words[:rest]
        ends = [base + end for base in range(0, count, len(self.words)) for end in self._ends if base + end < count]
        borders = [0, *ends, *([count] if count else [])]
        parts: list[str] = []
        start = 0
        for depth, needle in sorted(needles, key=lambda one: one[0]):
            place = borders[int((len(borders) - 1) * depth)]
            parts += [*words[start:place], needle]
            start = place
        return " ".join([*parts, *words[start:]])
