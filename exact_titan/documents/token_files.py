"""Read the documents of token files that Megatron-LM or datatrove wrote. These documents need no tokenizing.

In both formats, a document ends with an end-of-text id only if the tokenizing run asked for the id (Megatron-LM
``--append-eod``, datatrove ``eos_token``).
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from exact_titan.documents.datatrove_files import DatatroveFile
from exact_titan.documents.megatron_files import MegatronFile
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.errors import InputError

SUFFIXES = (".bin", ".idx", ".ds")


def is_token_file(path: Path) -> bool:
    """Return whether the path has the suffix of a token file.

    The suffixes are ``.bin`` and ``.idx`` (Megatron-LM) and ``.ds`` (datatrove).
    """
    return path.suffix in SUFFIXES and not path.is_dir()


def open_token_file(path: Path) -> TokenFile:
    """Open and check a token file. ``path`` may name either file of a Megatron-LM pair.

    Raises:
        InputError: if a file is missing or cannot be read, the index has another format, the index is inconsistent or
            does not fit the size of the ids' file, or the file has no token. :class:`MegatronFile` and
            :class:`DatatroveFile` list the other cases.
    """
    return DatatroveFile(path) if path.suffix == ".ds" else MegatronFile(path)


def ended_documents(
    file: TokenFile,
    *,
    eos_id: int,
    vocab_size: int,
    dtype: np.dtype,
    first: int = 0,
    last: int | None = None,
    split_at_eos: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the documents for the packer: the ids of the file, and the end-of-text id as the last id.

    Args:
        file: the token file.
        eos_id: the end-of-text id. A document that does not end with this id gets the id at its end.
        vocab_size: the highest id of the tokenizer, + 1.
        dtype: dtype of the arrays. The dtype can hold every id of the tokenizer.
        first: the first document, from 0.
        last: the last document + 1 (default: all documents).
        split_at_eos: whether a document also ends at every end-of-text id inside it.

    Yields:
        ``dtype`` ``[m]``, m >= 1. The array may be a read-only view.

    Raises:
        InputError: if the tokenizer does not have an id. The error names file, document and id.
    """
    for number, ids_m in enumerate(file.read(first, last), first + 1):
        if len(ids_m) and (ids_m.min() < 0 or ids_m.max() >= vocab_size):
            wrong = ids_m[(ids_m < 0) | (ids_m >= vocab_size)][0]
            raise InputError(
                f"{file.data}, document {number} of {len(file)}: id {wrong} is not among the tokenizer's {vocab_size} "
                "ids: give the --tokenizer that made the file"
            )
        document_m = ids_m.astype(dtype, copy=False)
        ends = (np.flatnonzero(document_m[:-1] == eos_id) + 1).tolist() if split_at_eos else []
        for begin, end in pairwise([0, *ends, len(document_m)]):
            yield _ended(document_m[begin:end], eos_id)


def ids_inside(document_m: np.ndarray, eos_id: int) -> int:
    """Return the number of end-of-text ids inside a document. A tokenizer may begin a document with the same id."""
    return int(np.count_nonzero(document_m[1:-1] == eos_id))


def _ended(document_m: np.ndarray, eos_id: int) -> np.ndarray:
    if len(document_m) and document_m[-1] == eos_id:
        return document_m
    return np.append(document_m, np.array(eos_id, document_m.dtype))
