"""The lengths of a split's documents, ``<split>-lengths.npy``.

The windows of any policy can be computed from the lengths alone. The file is int64 ``[documents]``: the number of
tokens of every document, with the end-of-text token, in the order of packing. The fingerprint does not cover the file,
and training does not read the file. After an interrupted ``append``, the file has additional documents at its end that
the manifest does not have.
"""

from array import array
from pathlib import Path

import numpy as np

from exact_titan.errors import InputError

BLOCK = 2**16


def lengths_file(folder: Path, split: str) -> Path:
    """Return the path of a split's lengths in a packed dataset."""
    return folder / f"{split}-lengths.npy"


class LengthWriter:
    """Writes the file in blocks. Memory does not grow with the number of documents."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lengths = array("q")
        self._written = 0

    def add(self, tokens: int) -> None:
        """Add the length of the next document."""
        self._lengths.append(tokens)
        if len(self._lengths) == BLOCK:
            self.flush()

    def extend(self, lengths_D: np.ndarray) -> None:
        """Add the lengths of the next documents."""
        for start in range(0, len(lengths_D), BLOCK):
            self._lengths.extend(lengths_D[start : start + BLOCK].tolist())
            self.flush()

    def flush(self) -> None:
        """Write the lengths that are still in memory. The file is then complete."""
        self._file.touch()
        with self._file.open("r+b") as out:
            # numpy reserves space in the header for a larger first dimension: the header keeps its size.
            shape = (self._written + len(self._lengths),)
            header = {"descr": "<i8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            out.seek(0, 2)
            out.write(np.array(self._lengths, dtype="<i8").tobytes())
        self._written += len(self._lengths)
        self._lengths = array("q")


def read_lengths(folder: Path, split: str, documents: int) -> np.ndarray:
    """Map the lengths of a split's documents into memory: int64 ``[documents]``.

    Args:
        folder: the packed dataset.
        split: name of the split.
        documents: number of the split's documents in the manifest.

    Raises:
        InputError: if the file is missing, has another format, has fewer documents than the manifest, or has a
            document of less than two tokens.
    """
    file = lengths_file(folder, split)
    if not file.is_file():
        raise InputError(f"{file} is missing: copy the dataset again or pack it again")
    try:
        lengths_D = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{file} is not a .npy file ({error}): copy the dataset again or pack it again") from error
    if lengths_D.dtype != np.int64 or lengths_D.ndim != 1 or len(lengths_D) < documents:
        raise InputError(
            f"{file} is {lengths_D.dtype} {list(lengths_D.shape)}, the manifest wants int64 [{documents}]: "
            "copy the dataset again or pack it again"
        )
    lengths_D = lengths_D[:documents]
    if documents and int(lengths_D.min()) < 2:
        raise InputError(f"{file} has a document of less than two tokens: copy the dataset again or pack it again")
    return lengths_D
