"""The speed of `exact-titan pack`, end to end, against its upper limit, the tokenizer's `encode_batch` alone.

Both sides get the same texts and the same number of tokenizer threads. The sides run in turns, after one uncounted turn
each. Every setting has a separate process, because the tokenizer starts its threads only once. `encode_batch` gets
texts in memory, in the batches of pack. pack reads the file, tokenizes, packs, hashes and writes.

Example: python benchmarks/packing.py --tokenizer Llama-3.1-8B --corpus books.jsonl.gz --repeats 5
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import tyro

DEFAULT_BYTES = 30_000_000


def main(tokenizer: Path, corpus: Path | None = None, workers: tuple[int, ...] = (1, 2), repeats: int = 5) -> None:
    """Measure packing against the tokenizer alone.

    Args:
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json.
        corpus: File or folder of documents (default: the standard library's sources, repeated to 30 MB).
        workers: Numbers of tokenizer threads to measure.
        repeats: Turns of each side; the result is the median.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = corpus or standard_library(Path(folder) / "stdlib.jsonl")
        print(f"corpus {source.name}, tokenizer {tokenizer.resolve().name}, {os.cpu_count()} cores, {repeats} turns")
        for number in workers:
            arguments = [str(source), str(tokenizer), str(number), str(repeats), folder]
            environment = os.environ | {"RAYON_NUM_THREADS": str(number), "TOKENIZERS_PARALLELISM": "true"}
            subprocess.run([sys.executable, __file__, "--measure", *arguments], env=environment, check=True)


def standard_library(file: Path) -> Path:
    """Write the standard library's sources to one .jsonl file, again and again, up to ``DEFAULT_BYTES``."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    size = 0
    with file.open("w", encoding="utf-8") as out:
        for module in cycle(modules):
            text = module.read_text(encoding="utf-8", errors="replace")
            out.write(json.dumps({"text": text}) + "\n")
            size += len(text)
            if size > DEFAULT_BYTES:
                return file
    raise FileNotFoundError("the standard library's sources are not on this machine")


def texts(source: Any) -> Iterator[str]:
    """Yield the text of every document of a source."""
    for file in source.files:
        with source.open(file) as reader:
            yield from reader.texts()


def measure(source: Path, tokenizer: Path, workers: int, repeats: int, folder: Path) -> None:
    """Measure one setting in this process and print the result."""
    from tokenizers import Tokenizer

    from exact_titan.documents.sources import Source
    from exact_titan.packing import pack
    from exact_titan.packing.part_reader import BATCH_BYTES, BATCH_DOCUMENTS

    batches: list[list[str]] = [[]]
    size = 0
    for text in texts(Source(source, "text")):
        if size >= BATCH_BYTES or len(batches[-1]) == BATCH_DOCUMENTS:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text.encode())
    alone = Tokenizer.from_file(str(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer))

    def encode_batch() -> int:
        return sum(len(encoding) for batch in batches for encoding in alone.encode_batch(batch))

    def pack_all() -> int:
        out = folder / "packed"
        manifest = pack([source], tokenizer=tokenizer, seq_len=16384, out=out, workers=workers)
        shutil.rmtree(out)
        return sum(record.tokens for record in manifest.sources)

    rates: dict[str, list[float]] = {"encode_batch": [], "pack": []}
    for turn in range(repeats + 1):
        for name, work in (("encode_batch", encode_batch), ("pack", pack_all)):
            begin = time.perf_counter()
            tokens = work()
            if turn:
                rates[name].append(tokens / (time.perf_counter() - begin))
    spread = ", ".join(f"{name} {min(values):,.0f} … {max(values):,.0f}" for name, values in rates.items())
    alone_rate, pack_rate = (statistics.median(values) for values in rates.values())
    print(f"workers {workers}: encode_batch {alone_rate:,.0f} tokens/s, pack {pack_rate:,.0f} tokens/s", end=", ")
    print(f"ratio {pack_rate / alone_rate:.3f}  ({spread})", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
    else:
        tyro.cli(main, description=__doc__)
