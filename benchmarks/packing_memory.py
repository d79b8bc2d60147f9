"""Peak memory of `exact-titan pack` by the size of the corpus, and by the length of its documents.

1. Pack corpora of different sizes. A corpus repeats the documents of a file, in files of 50 MB of text.
2. Pack corpora of one size with documents of different lengths. A document joins chapters up to its length.

Every corpus is packed in a separate process with one worker. The figure is the peak memory of this process (VmHWM).

Example: python -m benchmarks.packing_memory --tokenizer Llama-3.1-8B --corpus books.jsonl.gz
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import tyro

from benchmarks.packing import texts
from exact_titan.documents.sources import Source

FILE_BYTES = 50_000_000

PROGRAM = """
import re, sys
from pathlib import Path
from exact_titan.packing import pack
source, tokenizer, out, seq_len = sys.argv[1:5]
manifest = pack([source], tokenizer=Path(tokenizer), out=Path(out), seq_len=int(seq_len), workers=1)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(sum(source.tokens for source in manifest.sources), peak)
"""


def main(
    tokenizer: Path,
    corpus: Path,
    sizes: tuple[int, ...] = (50, 500, 2000),
    documents: tuple[int, ...] = (40_000, 400_000, 4_000_000, 40_000_000),
    seq_len: int = 16384,
) -> None:
    """Measure peak memory of packing.

    Args:
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json.
        corpus: File of documents to repeat.
        sizes: Sizes of the corpora, in MB of text.
        documents: Characters per document, for the corpora of 80 MB.
        seq_len: Window length.
    """
    source = Source(corpus, "text")
    found = list(texts(source))
    print(f"corpus {source.name}, tokenizer {tokenizer.resolve().name}, windows of {seq_len}")
    for size in sizes:
        measure(f"{size} MB", cycle(found), size * 1_000_000, tokenizer, seq_len)
    whole = "\n\n".join(found)
    for length in documents:
        joined = (whole * (1 + length // len(whole)))[:length]
        measure(f"documents of {length:,} characters", cycle([joined]), max(80_000_000, length), tokenizer, seq_len)


def measure(name: str, documents: Iterator[str], size: int, tokenizer: Path, seq_len: int) -> None:
    """Pack a corpus of ``size`` bytes of text, and print tokens, peak memory and time."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        written, number = 0, 0
        while written < size:
            with (corpus / f"{number:04d}.jsonl").open("w", encoding="utf-8") as out:
                until = min(size, written + FILE_BYTES)
                while written < until:
                    text = next(documents)
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    written += len(text.encode())
            number += 1
        begin = time.perf_counter()
        arguments = [sys.executable, "-c", PROGRAM, str(corpus), str(tokenizer), f"{folder}/packed", str(seq_len)]
        result = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, stderr=subprocess.DEVNULL)
        tokens, peak = re.split(r"\s+", result.stdout.strip())
        seconds = time.perf_counter() - begin
        print(f"{name:>32}  {int(tokens):>13,} tokens  peak {float(peak):8,.0f} MiB  {seconds:6.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
