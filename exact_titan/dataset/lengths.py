"""The lengths of a split's documents, ``<split>-lengths.npy``, and their masks, ``<split>-unsupervised.npy``.

The windows of any policy can be computed from the lengths alone. The first file is int64 ``[documents]``: the number
of tokens of every document, with the end-of-text token, in the order of packing. Only a dataset of format 3 has the
second file, int64 ``[documents]``: the number of first labels of every document without a loss.

The fingerprint does not cover the files, and training does not read the files. After an interrupted ``append``, a file
has additional documents at its end that the manifest does not have.
"""

from array import array
from pathlib import Path

import numpy as np

from exact_titan.dataset.files import check_file
from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.errors import InputError

BLOCK = 2**16


def lengths_file(folder: Path, split: str) -> Path:
    """Return the path of a split's lengths in a packed dataset."""
    return folder / f"{split}-lengths.npy"


def unsupervised_file(folder: Path, split: str) -> Path:
    """Return the path of the masks of a split's documents in a packed dataset of format 3."""
    return folder / f"{split}-unsupervised.npy"


class LengthWriter:
    """Writes one of the files in blocks. Memory does not grow with the number of documents."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lengths = array("q")
        self._written = 0

    def add(self, tokens: int) -> None:
        """Add the number of the next document."""
        self._lengths.append(tokens)
        if len(self._lengths) == BLOCK:
            self.flush()

    def extend(self, lengths_D: np.ndarray) -> None:
        """Add the numbers of the next documents."""
        for start in range(0, len(lengths_D), BLOCK):
            self._lengths.extend(lengths_D[start : start + BLOCK].tolist())
            self.flush()

    def flush(self) -> None:
        """Write the numbers that are still in memory. The file is then complete."""
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


def read_lengths(folder: Path, split: str, documents: int, *, inputs: int | None = None) -> np.ndarray:
    """Map the lengths of a split's documents into memory: int64 ``[documents]``.

    Args:
        folder: the packed dataset.
        split: name of the split.
        documents: number of the split's documents in the manifest, at least 1.
        inputs: number of inputs of the split's windows in the manifest. The documents must have the same number. A
            caller that lays out the documents gives the number: a policy does not end with a length of 2^62.

    Raises:
        InputError: if the file is missing, has another format, has fewer documents than the manifest, has a document of
            less than two tokens, or the documents have another number of inputs.
    """
    file = lengths_file(folder, split)
    lengths_D = _read(file, documents)
    if int(lengths_D.min()) < 2:
        raise InputError(f"{file} has a document of less than two tokens: {AGAIN}")
    # A sum of int64 could overflow. A float64 is exact for the inputs of every possible split.
    found = float(lengths_D.sum(dtype=np.float64)) - documents
    if inputs is not None and found != inputs:
        raise InputError(
            f"{file} does not fit the manifest: its documents have {found:.0f} inputs, and the windows have {inputs}: "
            f"{AGAIN}"
        )
    return lengths_D


def read_unsupervised(folder: Path, split: str, lengths_D: np.ndarray) -> np.ndarray:
    """Map the masks of the documents of a dataset of format 3 into memory: int64 ``[documents]``.

    Args:
        folder: the packed dataset.
        split: name of the split.
        lengths_D: the documents' lengths (:func:`read_lengths`).

    Raises:
        InputError: in the cases of :func:`read_lengths`; also if a document has no label with a loss.
    """
    file = unsupervised_file(folder, split)
    unsupervised_D = _read(file, len(lengths_D))
    if len(lengths_D) and not bool(((unsupervised_D >= 0) & (unsupervised_D < lengths_D - 1)).all()):
        raise InputError(f"{file} has a document without a supervised label: {AGAIN}")
    return unsupervised_D


def unsupervised_of_segments(unsupervised_D: np.ndarray, segments_S3: np.ndarray) -> np.ndarray:
    """Return the number of first labels without a loss of every segment, int64 ``[S]``.

    Args:
        unsupervised_D: number of first labels without a loss of every document, int64 ``[D]``.
        segments_S3: document, first input and number of inputs of every segment, int64 ``[S, 3]``.
    """
    document_S, first_S, inputs_S = segments_S3.T
    return np.clip(unsupervised_D[document_S] - first_S, 0, inputs_S)


def _read(file: Path, documents: int) -> np.ndarray:
    size = check_file(file)
    try:
        # Not np.load: numpy would also open an archive or a pickle, and multiplies the shape before it looks at the
        # size of the file.
        with file.open("rb") as stream:
            if (version := np.lib.format.read_magic(stream)) != (1, 0):
                raise ValueError(f"its version is {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            begin = stream.tell()
        if dtype != np.int64 or len(shape) != 1 or shape[0] < documents:
            raise InputError(f"{file} is {dtype} {list(shape)}, the manifest wants int64 [{documents}]: {AGAIN}")
        if begin + 8 * shape[0] > size:
            raise ValueError(f"its {shape[0]} numbers do not fit {size} bytes")
        return np.memmap(file, np.int64, mode="r", offset=begin, shape=(documents,))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} is not a .npy file ({error!s:.100}): {AGAIN}") from error
