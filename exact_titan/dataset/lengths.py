"""The lengths of a split's documents, ``<split>-lengths.npy``: what another policy would make of them needs no more.

int64 ``[documents]``: tokens of every document, end-of-text included, in the order they were packed. The file is no
part of the fingerprint, and training does not read it. It may go on with documents that the manifest does not have: an
``append`` that has not come to its end.
"""

from array import array
from pathlib import Path

import numpy as np

from exact_titan.errors import InputError

BLOCK = 2**16


def lengths_file(folder: Path, split: str) -> Path:
    """Where the lengths of a split lie in a packed dataset."""
    return folder / f"{split}-lengths.npy"


class LengthWriter:
    """Writes the file a block at a time, so that memory does not grow with the number of documents."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lengths = array("q")
        self._written = 0

    def add(self, tokens: int) -> None:
        """Put down the next document's length."""
        self._lengths.append(tokens)
        if len(self._lengths) == BLOCK:
            self.flush()

    def extend(self, lengths_D: np.ndarray) -> None:
        """Put down the lengths of the documents that come next."""
        for start in range(0, len(lengths_D), BLOCK):
            self._lengths.extend(lengths_D[start : start + BLOCK].tolist())
            self.flush()

    def flush(self) -> None:
        """Write what is left; the file is whole then."""
        self._file.touch()
        with self._file.open("r+b") as out:
            # numpy leaves room in the header for the first dimension to grow: written again, it is as long as before.
            shape = (self._written + len(self._lengths),)
            header = {"descr": "<i8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            out.seek(0, 2)
            out.write(np.array(self._lengths, dtype="<i8").tobytes())
        self._written += len(self._lengths)
        self._lengths = array("q")


def read_lengths(folder: Path, split: str, documents: int) -> np.ndarray:
    """The lengths of a split's documents, mapped into memory: int64 ``[documents]``.

    Raises:
        InputError: if the file is missing, is not such a file, has fewer documents than the manifest says
            (``documents``), or one of less than two tokens.
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
