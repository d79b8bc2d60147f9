"""Token files of datatrove.

datatrove (src/datatrove/pipeline/tokens/tokenizer.py, TokenizedFile), d documents with T ids in total::

    NAME.ds         [T]  uint16 or uint32   the ids, flat
    NAME.ds.index   [d]  uint64             end of a document, counted in ids
    NAME.ds.loss    [T]  bool               optional mask of the loss; refused

The width of the ids in ``NAME.ds`` follows from the size of ``NAME.ds`` and from T, the last entry of the index.
"""

from pathlib import Path

import numpy as np

from exact_titan.documents.token_file_base import TokenFile, first_fall
from exact_titan.errors import InputError


class DatatroveFile(TokenFile):
    """A file ``NAME.ds`` of datatrove with its ``NAME.ds.index``.

    Args:
        path: the file ``NAME.ds``.

    Raises:
        InputError: in the cases of :func:`open_token_file`; also if the file has a loss mask, because a packed dataset
            cannot hold a loss mask.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, path, path.with_name(f"{path.name}.index"))
        mask = path.with_name(f"{path.name}.loss")
        if mask.exists():
            raise InputError(
                f"source {path}: {mask.name} masks the loss, which a packed dataset cannot hold: move it to another "
                f"folder to train on all tokens"
            )

    def _check(self, index: np.ndarray, data_bytes: int) -> int:
        if len(index) % 8:
            raise self._broken(f"it has {len(index)} bytes, no multiple of 8")
        ends = index.view("<u8")
        if (document := first_fall(ends)) is not None:
            raise self._broken(f"document {document + 2} ends before it begins")
        self.tokens = int(ends[-1]) if len(ends) else 0
        for width in (2, 4):
            if data_bytes == self.tokens * width:
                self.dtype = np.dtype(f"<u{width}")
                return len(ends)
        raise self._does_not_fit(f"{self.tokens} ids of 2 or 4", data_bytes)

    def _borders(self, index: np.ndarray, first: int, last: int) -> np.ndarray:
        ends = index.view("<u8")
        return ends[first - 1 : last] if first else np.append(np.zeros(1, ends.dtype), ends[:last])
