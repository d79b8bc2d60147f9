"""What tests of more than one room use: datasets with documents of chosen lengths, and real torchrun."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from exact_titan.data import PackedDataset
from exact_titan.data.packing import pack

ROOT = Path(__file__).parents[1]
VOCAB = 256


def word_tokenizer(file: Path, ids: int) -> None:
    """A tokenizer.json whose ids are plain to see: the word "17" is token 17, up to ``ids - 1``, and ``</s>`` is 0."""
    words = {"</s>": 0} | {str(word): word for word in range(1, ids)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(file))


def pack_lengths(
    folder: Path, lengths: Sequence[int], *, seq_len: int, val_fraction: float = 0.0, seed: int = 0
) -> PackedDataset:
    """Packed dataset in ``folder/packed`` of random documents; each has one token more than its length, ``</s>``."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(folder / "tokenizer.json", VOCAB)
    with (folder / "documents.jsonl").open("w") as out:
        for length in lengths:
            # A walk with few choices, so that there is something to learn.
            word = rng.randrange(1, VOCAB)
            words = []
            for _ in range(length):
                words.append(str(word))
                word = (word * 7 + rng.randrange(3)) % (VOCAB - 1) + 1
            out.write(json.dumps({"text": " ".join(words)}) + "\n")
    out_folder = folder / "packed"
    pack(
        [folder / "documents.jsonl"],
        tokenizer=folder / "tokenizer.json",
        seq_len=seq_len,
        out=out_folder,
        val_fraction=val_fraction,
    )
    return PackedDataset(out_folder)


def torchrun(nproc: int, *arguments: str, cwd: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc_per_node=nproc arguments…`` in ``cwd``, one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={nproc}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
