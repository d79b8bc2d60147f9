"""Windows per second: the packed dataloader against torchtitan's own text dataloader, and over mixed datasets.

Both sides yield windows of the same length from documents of the same lengths. Both sides run on one data-parallel rank
with a local batch of 1, in the training process (``num_workers=0``, torchtitan's default). The benchmark calls ``next``
with automatic garbage collection off, as torchtitan's trainer does. The sides and the document lengths alternate in one
run. The benchmark compares medians.

The measured time of :class:`PackedDataLoader` covers the order of the windows, the reads from the mapped shards in this
random order (the shards are in the page cache), inputs, labels, positions, and the document borders for varlen
attention. The time does not cover the earlier packing and reads from a disk.

The measured time of torchtitan's :class:`HuggingFaceTextDataLoader` covers its packing, inputs, labels and positions,
collation, and one row per document from a Hugging Face dataset in memory (the document's number as a string, instead of
its text). The time does not cover tokenization: a stand-in for the tokenizer has an ``encode`` that returns a stored
Python list of the document's ids. torchtitan's loader makes no document borders for attention; torchtitan searches for
the borders on the device later. The speed of torchtitan's loader changes within a long document, so a round reads about
a whole number of documents.

A mixture holds as many windows in total as one dataset, in documents of the middle length. The weights are 1, 2, 3, …
"""

import argparse
import gc
import itertools
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataLoader
from torchtitan.tools.logging import logger

from benchmarks.synthetic import write_dataset
from exact_titan.titan.loader import PackedDataLoader

VOCAB_SIZE = 128_256


class StoredIds(BaseTokenizer):
    """A stand-in for a tokenizer without cost: a document's text is its number, its encoding is the stored list."""

    def __init__(self, documents: list[list[int]]) -> None:
        super().__init__()
        self.documents = documents

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        return self.documents[int(text)]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        raise NotImplementedError

    def get_vocab_size(self) -> int:
        return VOCAB_SIZE


def packed_loader(dataset_path: str, seq_len: int) -> PackedDataLoader:
    config = PackedDataLoader.Config(dataset_path=dataset_path)
    return config.build(dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=seq_len, local_batch_size=1)


def stock_loader(length: int, documents: int, seq_len: int) -> HuggingFaceTextDataLoader:
    rng = np.random.default_rng(0)
    tokenizer = StoredIds([rng.integers(0, VOCAB_SIZE, length).tolist() for _ in range(documents)])
    rows = Dataset.from_dict({"text": [str(number) for number in range(documents)]})
    DATASETS["stored_ids"] = DatasetConfig(path="", loader=lambda path: rows, sample_processor=lambda row: row["text"])
    config = HuggingFaceTextDataLoader.Config(dataset="stored_ids", dataset_path="memory")
    return config.build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=tokenizer,
        seq_len=seq_len,
        local_batch_size=1,
        snapshot_every_n_steps=None,  # the value without checkpoints: the loader takes no state
    )


def draw(batches: Iterator[Any], windows: int, seq_len: int) -> float:
    """Return the windows per second over the next ``windows`` windows."""
    shape = (1, seq_len)
    start = time.perf_counter()
    for inputs, labels in itertools.islice(batches, windows):
        assert inputs["input"].shape == labels.shape == inputs["positions"].shape == shape
    return windows / (time.perf_counter() - start)


@dataclass
class Side:
    """One loader over documents of one length, and its windows per second, one figure per round."""

    batches: Iterator[Any]
    windows: int
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def both_sides(length: int, folder: Path, args: argparse.Namespace) -> tuple[Side, Side]:
    """Return the packed and the stock loader over documents of ``length`` tokens, after a warm-up."""
    write_dataset(
        folder,
        window=args.seq_len,
        windows=args.dataset_windows,
        lengths=itertools.repeat(length),
        vocab_size=VOCAB_SIZE,
    )
    inputs = length - 1
    documents = math.ceil(args.stock_windows * args.seq_len / inputs)
    packed = Side(iter(packed_loader(str(folder), args.seq_len)), args.packed_windows)
    stock = Side(iter(stock_loader(length, documents, args.seq_len)), math.ceil(documents * inputs / args.seq_len))
    draw(packed.batches, args.dataset_windows, args.seq_len)  # read every page once
    draw(stock.batches, stock.windows, args.seq_len)
    return packed, stock


def mixed_side(count: int, length: int, folder: Path, args: argparse.Namespace) -> Side:
    """Return the packed loader over ``count`` weighted datasets of ``length``-token documents, after a warm-up."""
    entries = []
    for index in range(count):
        dataset = write_dataset(
            folder / str(index),
            window=args.seq_len,
            windows=args.dataset_windows // count,
            lengths=itertools.repeat(length),
            vocab_size=VOCAB_SIZE,
            seed=index,
        )
        entries.append(f"{dataset}={index + 1}")
    side = Side(iter(packed_loader(",".join(entries), args.seq_len)), args.packed_windows)
    draw(side.batches, args.dataset_windows * count, args.seq_len)  # read every page once, for all weights
    return side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=16_384)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1_000, 20_000, 1_000_000], help="tokens per document"
    )
    parser.add_argument("--mixtures", type=int, nargs="+", default=[1, 8], help="datasets in each mixture")
    parser.add_argument("--dataset-windows", type=int, default=2048, help="windows in a packed dataset or a mixture")
    parser.add_argument("--packed-windows", type=int, default=256, help="windows per turn of the packed loader")
    parser.add_argument(
        "--stock-windows", type=int, default=60, help="smallest number of windows per round of the stock loader"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds, each with one turn of the stock loader")
    parser.add_argument("--turns", type=int, default=20, help="turns of the packed loader per round")
    parser.add_argument(
        "--small", action="store_true", help="a run of seconds instead of a minute; its figures have no meaning"
    )
    args = parser.parse_args()
    if args.small:
        args.seq_len, args.lengths, args.rounds = 256, [100, 1_000, 10_000], 2
        args.dataset_windows = args.packed_windows = 64

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*set_vital")
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        sides = {length: both_sides(length, Path(folder) / str(length), args) for length in args.lengths}
        middle = sorted(args.lengths)[len(args.lengths) // 2]
        mixtures = {n: mixed_side(n, middle, Path(folder) / f"mixture-{n}", args) for n in args.mixtures}
        for _ in range(args.rounds):
            # The lengths alternate quickly, so other load on the machine affects all lengths alike.
            for _ in range(args.turns):
                for packed, _ in sides.values():
                    packed.rates.append(draw(packed.batches, packed.windows, args.seq_len))
                for side in mixtures.values():
                    side.rates.append(draw(side.batches, side.windows, args.seq_len))
            for _, stock in sides.values():
                stock.rates.append(draw(stock.batches, stock.windows, args.seq_len))
            gc.collect()

    print(f"windows of {args.seq_len} tokens, one process, medians over {args.rounds} rounds")
    print(f"{'document':>10} {'packed':>24} {'torchtitan':>24} {'ratio':>7}")
    print(f"{'tokens':>10} {'windows/s':>12}{'Mtokens/s':>12} {'windows/s':>12}{'Mtokens/s':>12}")
    million = args.seq_len / 1e6
    for length, (packed, stock) in sides.items():
        print(
            f"{length:>10,} {packed.rate:>12,.0f}{packed.rate * million:>12,.1f} "
            f"{stock.rate:>12,.1f}{stock.rate * million:>12,.2f} {packed.rate / stock.rate:>7,.1f}"
        )
    rates = [packed.rate for packed, _ in sides.values()]
    print(f"packed, fastest over slowest length: {max(rates) / min(rates):.2f}")
    for count, side in mixtures.items():
        print(f"packed, {count} mixed, documents of {middle:,}: {side.rate:,.0f} windows/s")


if __name__ == "__main__":
    main()
