"""Packed datasets of random token ids, so a benchmark needs no corpus and no tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from exact_titan.dataset.manifest import Manifest
from exact_titan.dataset.work import write_work
from exact_titan.dataset.writer import SplitWriter
from exact_titan.documents.tokenizer_record import TokenizerRecord

SHARD_TOKENS = 2**24


def mixed_lengths(window: int, seed: int = 0, longest: float = 4) -> Iterator[int]:
    """Yield endless document lengths, log-uniform from 64 tokens to ``longest`` windows.

    With the default every bucket gets targets.
    """
    rng = np.random.default_rng(seed)
    while True:
        yield int(np.exp(rng.uniform(np.log(64), np.log(longest * window))))


def write_dataset(
    folder: Path,
    *,
    window: int,
    windows: int,
    lengths: Iterator[int],
    vocab_size: int,
    seed: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Write a packed dataset with a split ``train`` of at least ``windows`` full windows, and return ``folder``.

    The documents hold uniformly random ids. A model cannot learn from random ids, and the timings do not depend on the
    ids. The dataset's tokenizer has one word, so torchtitan's trainer can load the tokenizer.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    writer = SplitWriter(folder, "train", window, dtype, shard_tokens)
    inputs = 0
    while inputs < windows * window:
        length = max(2, next(lengths))
        writer.add(rng.integers(0, vocab_size, length, dtype=dtype))
        inputs += length - 1
    record = writer.finish()
    assert record is not None
    write_work(folder, "train", record.shards, window)
    (folder / "tokenizer").mkdir()
    Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>")).save(str(folder / "tokenizer" / "tokenizer.json"))
    Manifest(
        sources=[],
        tokenizer=TokenizerRecord(name="random ids", sha256="", vocab_size=vocab_size, eos_id=0, eos_token="<eos>"),
        window=window,
        policy="concat",
        token_dtype=dtype.name,
        val_fraction=0.0,
        splits={"train": record},
    ).write(folder)
    return folder
