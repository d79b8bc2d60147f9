"""Windows as they are wanted: what is broken in a shard is one line, and names the window."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from exact_titan.dataset.dataset import PackedDataset
from exact_titan.errors import InputError


@contextmanager
def reading_window(dataset: PackedDataset, k: int) -> Iterator[None]:
    """Around the reading of window ``k``: its shard may not hold what was packed.

    Raises:
        InputError: naming the window, for segments that are none.
    """
    try:
        yield
    except InputError:
        raise
    except (IndexError, ValueError, MemoryError) as error:
        raise _broken(dataset, k, str(error)) from error


def check_ids(dataset: PackedDataset, k: int, input_L: np.ndarray, labels_L: np.ndarray) -> None:
    """Refuse a window with token ids that its tokenizer does not have: an embedding would fail, far from here.

    Raises:
        InputError: naming the window.
    """
    vocab_size = dataset.manifest.tokenizer.vocab_size
    highest = max(int(input_L.max()), int(labels_L.max()))
    if highest >= vocab_size:
        raise _broken(dataset, k, f"it has the token id {highest}, and its tokenizer {vocab_size} ids")


def _broken(dataset: PackedDataset, k: int, why: str) -> InputError:
    return InputError(
        f"window {k} of {dataset.folder} is broken ({why}): `exact-titan verify {dataset.folder}` says what is, "
        f"copy the dataset again or pack it again"
    )
