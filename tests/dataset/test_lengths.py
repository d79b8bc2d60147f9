from pathlib import Path

import numpy as np
import pytest

from exact_titan.dataset import lengths
from exact_titan.dataset.lengths import LengthWriter, lengths_file, read_lengths
from exact_titan.errors import InputError


@pytest.mark.parametrize("documents", [1, 3, 4, 5, 1003])
def test_comes_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int) -> None:
    monkeypatch.setattr(lengths, "BLOCK", 4)
    file = lengths_file(tmp_path, "train")
    written = [2 + 10**k for k in range(10)] * documents
    writer = LengthWriter(file)
    for length in written[:documents]:
        writer.add(length)
    writer.flush()
    found = read_lengths(tmp_path, "train", documents)
    assert found.dtype == np.int64
    assert found.tolist() == written[:documents]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([5, 3]), r"train-lengths\.npy is int64 \[2\], the manifest wants int64 \[3\]"),
        (np.array([5.0, 3, 2]), r"is float64 \[3\]"),
        (np.array([5, 1, 2]), "has a document of less than two tokens"),
        (b"5 3 2", r"is not a \.npy file"),
        (b"", r"is not a \.npy file"),
        (None, "is missing: copy the dataset again or pack it again"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: np.ndarray | bytes | None, message: str) -> None:
    file = lengths_file(tmp_path, "train")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(InputError, match=message) as error:
        read_lengths(tmp_path, "train", 3)
    assert "\n" not in str(error.value)
