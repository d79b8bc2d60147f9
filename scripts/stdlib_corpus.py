"""Make documents and a tokenizer from the source files of the Python standard library.

Every machine with Python has these files.

    python scripts/stdlib_corpus.py OUT [--megabytes N] [--vocab-size N]

The script writes OUT/documents.jsonl (one document per source file) and OUT/tokenizer/tokenizer.json (byte-level BPE
with <|endoftext|>).
"""

import argparse
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from exact_titan import entry

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def source_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every standard library source file except the tests, in the order of the names."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if _LEFT_OUT.isdisjoint(name.parts):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield name.as_posix(), text


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of ``vocab_size`` ids, trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather the standard library's sources and train a tokenizer on them.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=16, help="stop after this much text (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=4096, help="ids of the tokenizer (default: %(default)s)")
    options = parser.parse_args()

    documents, size = [], 0
    for name, text in source_files():
        documents.append({"id": name, "text": text})
        size += len(text.encode())
        if size >= options.megabytes * 1e6:
            break
    (options.out / "tokenizer").mkdir(parents=True, exist_ok=True)
    with (options.out / "documents.jsonl").open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(json.dumps(document) + "\n")
    tokenizer = train_tokenizer([document["text"] for document in documents], options.vocab_size)
    tokenizer.save(str(options.out / "tokenizer" / "tokenizer.json"))
    print(f"{len(documents)} source files, {size / 1e6:.1f} MB; tokenizer of {tokenizer.get_vocab_size()} ids")


if __name__ == "__main__":
    sys.exit(entry.run("stdlib_corpus", main))
