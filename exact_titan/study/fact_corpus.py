"""Make the corpus of the miniature study: real text with planted facts, in short and in long windows.

1. Read the texts, and hold a tenth of the texts out for validation.
2. Train a small byte-level BPE tokenizer on the other texts. Encode the texts before the tokenizer gets the tokens of
   the facts: no text can contain a token of a fact.
3. Draw documents: a document is a piece of one text, and its length is lognormal. Write facts over the tokens of the
   piece, at random distances.
4. Pack the documents of each stage with :func:`exact_titan.packing.pack`. Token files carry the exact ids.

The stages differ in the length of windows and documents. Half of the short documents also have dense facts: few
different facts and little text between them. A model of two layers learns to copy in dense documents, where an asked
fact competes with few other tokens. One start learned to copy between step 300 and step 900, at 2,048 tokens a step.
Another start had not learned after 600 steps. The other short documents have the spacing of the long documents. The
long stage therefore teaches length and not another kind of text.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from exact_titan.dataset.manifest import Manifest
from exact_titan.documents.long_texts import encode_long
from exact_titan.documents.sources import Source
from exact_titan.errors import InputError
from exact_titan.packing import Corpus, CorpusSource, pack
from exact_titan.runs.destinations import check_writable
from exact_titan.study.facts import FactTokens

TEXT_VOCAB = 512
KEYS = VALUES = 32
END_OF_TEXT = "<|endoftext|>"
SIGMA = 1.2
"""Standard deviation of the logarithm of a document's length."""

DENSE, SPARSE = (2, 4), (8, 12)
"""Kinds of documents: mean number of text tokens between two facts, and number of different facts."""

HELD_OUT = 0.1
MOST_CHARACTERS = 2**26
"""Characters of the sources that are read. The memory holds all texts."""

TOKENIZER_CHARACTERS = 2**22
"""Characters of the texts that the tokenizer is trained on."""


@dataclass(frozen=True)
class Stage:
    """The documents of a stage.

    Attributes:
        name: folder of the dataset.
        window: inputs per window.
        kinds: kinds of documents. Every document is of a random kind. A kind is the mean number of text tokens between
            two facts, at least 1, and the number of different facts, at most :data:`KEYS`.
    """

    name: str
    window: int
    kinds: tuple[tuple[float, int], ...]


def plant_facts(
    sources: Sequence[str | Path],
    *,
    out: Path,
    short_len: int = 128,
    long_len: int = 512,
    tokens: int = 4_000_000,
    val_tokens: int = 262_144,
    seed: int = 0,
    text_key: str = "text",
) -> dict[str, Manifest]:
    """Make the datasets ``out/short`` and ``out/long``. The result depends only on the texts and the arguments.

    The median document has 2/5 of its window's tokens, and the longest document has 8 times ``long_len`` tokens.

    Args:
        sources: files and folders of documents (:mod:`exact_titan.documents.sources`), without token files.
        out: the new folder. The folder appears in one step at the end.
        short_len: inputs per window of ``short``.
        long_len: inputs per window of ``long``.
        tokens: least number of tokens of the training documents of each dataset.
        val_tokens: least number of tokens of the validation documents of each dataset.
        seed: seed of the held-out texts, the documents and the facts.
        text_key: key (column) of the text in .jsonl and .parquet files.

    Returns:
        The manifests of the two datasets, by the name of the stage.

    Raises:
        InputError: if a value or source cannot be used, ``out`` exists, or the texts are too few or too short.
    """
    _check(out, short_len, long_len, tokens, val_tokens)
    rng = np.random.default_rng(seed)
    texts = _read(sources, text_key)
    if len(texts) < 2:
        raise InputError(f"the sources have {len(texts)} text: give 2 texts or more, one is held out for validation")
    order = rng.permutation(len(texts))
    held_out = max(1, round(HELD_OUT * len(texts)))
    split_texts = {
        "train": [texts[k] for k in order[held_out:]],
        "val": [texts[k] for k in order[:held_out]],
    }
    tokenizer = _train_tokenizer(split_texts["train"])
    needed, longest = {"train": tokens, "val": val_tokens}, 8 * long_len
    pools = {split: _Pool(split, of, tokenizer, needed[split], longest) for split, of in split_texts.items()}
    fact_tokens = _add_fact_tokens(tokenizer)

    out.parent.mkdir(parents=True, exist_ok=True)
    manifests = {}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        work = Path(name)
        (work / "tokenizer").mkdir()
        tokenizer.save(str(work / "tokenizer" / "tokenizer.json"))
        for stage in (Stage("short", short_len, (DENSE, SPARSE)), Stage("long", long_len, (SPARSE,))):
            folder = work / "tokens" / stage.name
            folder.mkdir(parents=True)
            splits = []
            for split, pool in pools.items():
                draw = _Draw(pool, stage, fact_tokens, median=2 * stage.window / 5, longest=longest, rng=rng)
                file = _write(folder / f"{split}.ds", draw.documents(needed[split]))
                splits.append(CorpusSource(path=str(file), split=split))
            dataset = work / "datasets" / stage.name
            manifests[stage.name] = pack(
                Corpus(splits), tokenizer=work / "tokenizer", seq_len=stage.window, out=dataset, workers=1
            )
            fact_tokens.write(dataset)
        (work / "datasets").rename(out)
    return manifests


def _check(out: Path, short_len: int, long_len: int, tokens: int, val_tokens: int) -> None:
    if out.exists():
        raise InputError(f"--out {out} exists: give a new folder")
    check_writable(out, "--out")
    if not 8 <= short_len < long_len:
        raise InputError(
            f"--short-len is {short_len} and --long-len is {long_len}: "
            "the short windows have at least 8 tokens and the long windows more"
        )
    for option, number in (("--tokens", tokens), ("--val-tokens", val_tokens)):
        if number < long_len:
            raise InputError(f"{option} is {number}: one window of --long-len {long_len} needs more")


def _read(sources: Sequence[str | Path], text_key: str) -> list[str]:
    """Return the texts of the sources, in their order, up to :data:`MOST_CHARACTERS` characters."""
    if not sources:
        raise InputError("no source given: name files or folders of documents")
    texts: list[str] = []
    characters = 0
    for path in sources:
        source = Source(path, text_key)
        before = len(texts)
        for file in source.files:
            with source.open(file) as reader:
                for text in reader.texts():
                    texts.append(text)
                    characters += len(text)
                    if characters >= MOST_CHARACTERS:
                        return texts
        if len(texts) == before:
            raise InputError(f"source {path}: no document with text under {text_key!r}, see --text-key")
    return texts


def _train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of at most :data:`TEXT_VOCAB` ids, without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_first_characters(texts, TOKENIZER_CHARACTERS), trainer)
    return tokenizer


def _first_characters(texts: list[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _add_fact_tokens(tokenizer: Tokenizer) -> FactTokens:
    """Add the end-of-text token, the keys and the values to the tokenizer."""
    tokenizer.add_special_tokens([END_OF_TEXT])
    first_key = tokenizer.get_vocab_size()
    for kind, number in (("key", KEYS), ("value", VALUES)):
        tokenizer.add_tokens([AddedToken(f"<|{kind}-{k}|>", normalized=False) for k in range(number)])
    return FactTokens(first_key, KEYS, first_key + KEYS, VALUES)


class _Pool:
    """The token ids of the first texts of a split. Documents are cut from the pool.

    Args:
        split: split of the texts, for messages.
        texts: the texts, in random order.
        tokenizer: the tokenizer without the tokens of the facts.
        tokens: number of tokens at which the pool is large enough.
        longest: tokens of the longest document.

    Raises:
        InputError: if no text is longer than the longest document.
    """

    def __init__(self, split: str, texts: list[str], tokenizer: Tokenizer, tokens: int, longest: int) -> None:
        encoded, size = [], 0
        for text in texts:
            ids_m = encode_long(tokenizer, text)
            if ids_m is None:
                ids_m = np.array(tokenizer.encode(text).ids)
            encoded.append(ids_m.astype(np.uint16))
            size += len(ids_m)
            if size >= tokens and len(ids_m) > longest:
                break
        # Sorted by length: the texts that are longer than a document are the last texts.
        self._texts = sorted(encoded, key=len)
        self._lengths = np.array([len(ids) for ids in self._texts])
        if self._lengths[-1] <= longest:
            raise InputError(
                f"the longest of {len(texts)} texts for the split {split} has {self._lengths[-1]} tokens, and a "
                f"document has up to {longest}: give longer texts, or a smaller --long-len"
            )

    def cut(self, tokens: int, rng: np.random.Generator) -> np.ndarray:
        """Return a copy of a random piece of a random text, uint16 ``[tokens]``."""
        first = int(np.searchsorted(self._lengths, tokens, side="right"))
        ids = self._texts[rng.integers(first, len(self._texts))]
        begin = rng.integers(len(ids) - tokens)
        return ids[begin : begin + tokens].copy()


@dataclass(frozen=True)
class _Draw:
    """Draws the documents of a split of a stage."""

    pool: _Pool
    stage: Stage
    fact_tokens: FactTokens
    median: float
    longest: int
    rng: np.random.Generator

    def documents(self, tokens: int) -> Iterator[np.ndarray]:
        """Yield documents, uint16 ``[m]``, until the documents have ``tokens`` tokens in total."""
        while tokens > 0:
            length = int(np.clip(self.rng.lognormal(np.log(self.median), SIGMA), 16, self.longest))
            ids_m = self.pool.cut(length, self.rng)
            self._plant(ids_m)
            yield ids_m
            tokens -= length

    def _plant(self, ids_m: np.ndarray) -> None:
        """Write facts over tokens of a document.

        A new fact and an asked fact have the same probability until the document has stated all its facts. An asked
        fact is any fact that the document has stated. A key has one value in a document.
        """
        rng, tokens = self.rng, self.fact_tokens
        keys = tokens.first_key + rng.permutation(tokens.keys)
        values = tokens.first_value + rng.integers(tokens.values, size=tokens.keys)
        spacing, facts = self.stage.kinds[rng.integers(len(self.stage.kinds))]
        stated = 0
        at = rng.geometric(1 / spacing)
        while at + 2 <= len(ids_m):
            if stated == facts or (stated and rng.random() < 0.5):
                fact = int(rng.integers(stated))
            else:
                fact = stated
                stated += 1
            ids_m[at : at + 2] = keys[fact], values[fact]
            at += 2 + rng.geometric(1 / spacing)


def _write(file: Path, documents: Iterator[np.ndarray]) -> Path:
    """Write a token file of datatrove with 2 bytes an id."""
    out = TokenizedFile(str(file.parent), file.name, token_size=2)
    for ids_m in documents:
        out.write(ids_m.tolist(), None)
    out.close()
    return file
