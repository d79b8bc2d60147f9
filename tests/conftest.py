"""Fixtures of more than one room."""

import random

import pytest

from exact_titan.data import PackedDataset
from tests.support import pack_lengths


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """About 100 windows of 64 tokens, and 11 to validate on, a number that two ranks do not share evenly."""
    rng = random.Random(1)
    lengths = [round(rng.lognormvariate(3, 1)) + 1 for _ in range(220)]
    return pack_lengths(tmp_path_factory.mktemp("dataset"), lengths, seq_len=64, val_fraction=0.11)
