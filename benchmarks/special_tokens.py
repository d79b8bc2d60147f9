"""The cost of special tokens that stay letters (``--special-tokens text``), against ``ids``.

Both sides tokenize the same documents with one thread. The sides run in turns, after one uncounted turn each. ``text``
also searches every document for special tokens, as ``pack`` does. The result is the CPU time of ``text`` over ``ids``.

Example: RAYON_NUM_THREADS=1 python -m benchmarks.special_tokens --tokenizer Llama-3.1-8B --corpus books.jsonl.gz
"""

import statistics
import time
from itertools import islice
from pathlib import Path

import tyro

from benchmarks.packing import texts
from exact_titan.documents.sources import Source
from exact_titan.documents.tokenizer import DocumentTokenizer


def main(tokenizer: Path, corpus: Path, documents: int = 350, repeats: int = 6) -> None:
    """Measure the cost of special tokens that stay letters.

    Args:
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json.
        corpus: File or folder of documents.
        documents: Number of documents, from the start of the corpus.
        repeats: Turns of each side; the result is the median.
    """
    found = list(islice(texts(Source(corpus, "text")), documents))
    sides = {
        "ids": DocumentTokenizer(tokenizer, special_tokens="ids"),
        "text": DocumentTokenizer(tokenizer, special_tokens="text"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            begin = time.process_time()
            tokens[name] = sum(len(ids) for text in found for ids in side.encode([text]))
            if name == "text":
                for text in found:
                    side.spells_special(text)
            if turn:
                seconds[name].append(time.process_time() - begin)
    ratios = [text / ids for text, ids in zip(seconds["text"], seconds["ids"], strict=True)]
    print(
        f"{len(found)} documents, {tokens['text']:,} tokens: ids {statistics.median(seconds['ids']):.3f} s, "
        f"text {statistics.median(seconds['text']):.3f} s, ratio {statistics.median(ratios):.4f} "
        f"({min(ratios):.4f} … {max(ratios):.4f})"
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
