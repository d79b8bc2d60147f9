"""Reads distributed checkpoints without running code. Every reader of a checkpoint in this package uses this module.

A checkpoint has two kinds of pickles, and PyTorch runs the code in both:

- ``.metadata`` says where every value is stored: :mod:`exact_titan.runs.safe_pickle` reads it.
- The values that are not tensors, such as the step, are pickles in the ``.distcp`` files. ``torch.load`` reads these
  values with ``weights_only=True`` here, and without in PyTorch.

All files are plain files in the folder of the checkpoint, and no value is longer than its file. A stored value is never
compressed, because a few kilobytes could then fill the memory.
"""

import io
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from exact_titan.runs.safe_pickle import MetadataError, parse_metadata
from exact_titan.system.folder_files import leads_outside

DCP_METADATA = ".metadata"
"""The file in which PyTorch's distributed checkpoints record the file and offset of every tensor."""


def read_metadata(checkpoint: Path) -> Metadata:
    """Return the metadata of a checkpoint whose files hold everything that the metadata name.

    Raises:
        MetadataError: if the metadata are damaged or hostile, or if a file is missing, too short, or a link out of the
            folder. The message is the reason.
        OSError: if the metadata cannot be read.
    """
    metadata = parse_metadata(checkpoint / DCP_METADATA)
    for name, needed in stored_bytes(metadata).items():
        file = checkpoint / name
        if leads_outside(checkpoint, file):
            raise MetadataError(f"{name} is a link to a file outside of the folder: copy the file itself")
        size = file.stat().st_size if file.is_file() else 0
        if size < needed:
            raise MetadataError(f"{name} has {size:,} bytes, but {DCP_METADATA} needs {needed:,}")
    return metadata


def stored_bytes(metadata: Metadata) -> dict[str, int]:
    """Return the size in bytes that every file of a checkpoint has at least, by the name of the file."""
    stored: dict[str, int] = {}
    for info in metadata.storage_data.values():
        stored[info.relative_path] = max(stored.get(info.relative_path, 0), info.offset + info.length)
    return stored


def load_checkpoint(state: dict[str, Any], checkpoint: Path, *, no_dist: bool = False) -> None:
    """Fill ``state`` as :func:`torch.distributed.checkpoint.load` does. Every rank calls the function.

    Args:
        state: tensors, values and stateful objects by name.
        checkpoint: the folder of the checkpoint. The checkpoint may come from any number of ranks.
        no_dist: one process reads all of ``state`` by itself.

    Raises:
        MetadataError, OSError: as :func:`read_metadata`.
        CheckpointException: if a stored value is damaged, hostile or missing.
    """
    reader = _Reader(checkpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, planner=_Planner(), no_dist=no_dist)


class _Reader(FileSystemReader):
    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        # PyTorch logs a traceback if the metadata cannot be read during a load.
        self._metadata = read_metadata(checkpoint)

    def read_metadata(self) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        """Return the bytes of a value. The bytes are a zip archive that ``torch.save`` has written."""
        try:
            with zipfile.ZipFile(_Value(file, sinfo.offset, sinfo.length)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise MetadataError(f"a value in {sinfo.relative_path} is damaged: {error}") from None
        if unpacked > sinfo.length:
            raise MetadataError(f"a value in {sinfo.relative_path} is compressed, which no value of a checkpoint is")
        return super()._slice_file(file, sinfo)


class _Value(io.RawIOBase):
    """The bytes of one value in a file. PyTorch's own view of these bytes seeks to a wrong place from their end."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = max(0, place + (0, self._place, self._length)[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._offset + self._place)
        data = self._file.read(min(len(buffer), max(0, self._length - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            # PyTorch's message advises to load the file with weights_only=False.
            name = read_item.storage_index.fqn
            raise MetadataError(f"its {name:.100} is not plain data and may run code, or is damaged") from error
        # PyTorch's planner loads with weights_only=False, so it gets the value that was read safely.
        checked = io.BytesIO()
        torch.save(plain, checked)
        checked.seek(0)
        super().load_bytes(read_item, checked)
