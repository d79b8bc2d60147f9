"""Reads the ``.metadata`` of a distributed checkpoint without running code.

``.metadata`` is a pickle, and Python's unpickler calls every function that a pickle names. A checkpoint may come from
somebody else. This module therefore reads the pickle in two steps:

1. :class:`RecordUnpickler` (:mod:`pickle_records`) knows only the opcodes and the names in the pickles of torch's own
   checkpoints. Every named class becomes an inert :class:`Record`. No class of torch and no function of the pickle's
   choice is called.
2. :class:`_Builder` makes torch's :class:`Metadata` from the records. The builder checks every type, name and number.
"""

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from exact_titan.runs.pickle_records import (
    BytesRecord,
    ChunkRecord,
    IndexRecord,
    MetadataError,
    MetadataRecord,
    PropertiesRecord,
    RecordUnpickler,
    SizeRecord,
    StoredRecord,
    TensorRecord,
)
from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.folder_files import is_plain_name

LARGEST_BYTES = 2**30
"""Largest ``.metadata`` in bytes. A stored piece needs about 150 bytes: 1,000 tensors with their optimizer on
1,000 ranks, 3 million pieces, need half of this size."""

_MOST_DIMENSIONS = 64  # torch's limit
_LARGEST_NUMBER = 2**63 - 1


def parse_metadata(file: Path) -> Metadata:
    """Return the content of a ``.metadata``. The planner's data and the origin of the checkpoint are left out.

    The function opens no other file. Memory is proportional to the size of the file.

    Raises:
        MetadataError: if the file is damaged, is larger than :data:`LARGEST_BYTES`, or holds anything else than a
            checkpoint of torch.
        OSError: if the file cannot be read.
    """
    try:
        data = read_bounded(file, LARGEST_BYTES)
    except ValueError as error:
        raise MetadataError(str(error)) from None
    try:
        root = RecordUnpickler(io.BytesIO(data)).load()
    except MetadataError:
        raise
    except (
        *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError),
        struct.error,
    ) as error:
        raise MetadataError(f"it is damaged: {type(error).__name__} {error}") from None
    return _Builder(len(data)).metadata(root)


class _Builder:
    """Makes torch's objects from records.

    Args:
        most: the most chunks of all tensors together. A pickle can name one list of chunks a million times.
    """

    def __init__(self, most: int) -> None:
        self._chunks_left = most

    def metadata(self, root: Any) -> Metadata:
        """Return the metadata of a checkpoint.

        Raises:
            MetadataError: if a value has a wrong type, or if the numbers contradict each other.
        """
        _require(isinstance(root, MetadataRecord), "it is not the metadata of a checkpoint")
        storage = root.field("storage_data")
        values = root.field("state_dict_metadata")
        _require(isinstance(storage, dict) and isinstance(values, dict), "it lacks the list of the stored values")
        storage_data = {_index(index): _stored(stored) for index, stored in storage.items()}
        state_dict = {_text(name): self._value(_text(name), value, storage_data) for name, value in values.items()}
        version = root.field("version")
        return Metadata(state_dict, storage_data=storage_data, version=None if version is None else _text(version))

    def _value(
        self, name: str, value: Any, storage: dict[MetadataIndex, _StorageInfo]
    ) -> TensorStorageMetadata | BytesStorageMetadata:
        if isinstance(value, BytesRecord):
            _require(MetadataIndex(name) in storage, f"it does not say where {name:.100} is stored")
            return BytesStorageMetadata()
        _require(isinstance(value, TensorRecord), f"its {name:.100} is neither a tensor nor bytes")
        size, dtype, chunks = _size(value.field("size")), _dtype(value.field("properties")), value.field("chunks")
        _require(isinstance(chunks, list), f"its tensor {name:.100} has no list of chunks")
        self._chunks_left -= len(chunks)
        _require(self._chunks_left >= 0, "it lists more chunks than it can hold")
        built = [_chunk(chunk) for chunk in chunks]
        for chunk in built:
            stored = storage.get(MetadataIndex(name, chunk.offsets))
            _require(stored is not None, f"it does not say where a chunk of {name:.100} is stored")
            assert stored is not None
            inside = len(chunk.offsets) == len(chunk.sizes) == len(size) and all(
                offset + length <= whole for offset, length, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)
            )
            _require(inside, f"a chunk of its tensor {name:.100} is outside of the tensor")
            needed = math.prod(chunk.sizes) * dtype.itemsize
            _require(needed <= stored.length, f"its tensor {name:.100} is larger than the stored bytes")
        # torch checks the same sum before every save.
        whole = sum(math.prod(chunk.sizes) for chunk in built) == math.prod(size)
        _require(whole, f"the chunks of its tensor {name:.100} are not the whole tensor")
        return TensorStorageMetadata(TensorProperties(dtype=dtype), size, built)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise MetadataError(otherwise)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise MetadataError("one of its names is not a text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST_NUMBER:
        raise MetadataError("one of its numbers is not a size")
    return value


def _size(value: Any) -> torch.Size:
    args = value.args if isinstance(value, SizeRecord) else ()
    # torch.Size is pickled with one argument, a tuple.
    if len(args) != 1 or not isinstance(args[0], tuple) or len(args[0]) > _MOST_DIMENSIONS:
        raise MetadataError("one of its sizes is not a size")
    return torch.Size(map(_number, args[0]))


def _dtype(properties: Any) -> torch.dtype:
    # torch 2.13 stores five properties, torch 2.15 six. The data type is the first.
    state = properties.state if isinstance(properties, PropertiesRecord) else None
    if not isinstance(state, tuple) or not state or not isinstance(state[0], torch.dtype):
        raise MetadataError("one of its tensors has no data type")
    return state[0]


def _chunk(value: Any) -> ChunkStorageMetadata:
    if not isinstance(value, ChunkRecord):
        raise MetadataError("one of its chunks is not a chunk")
    return ChunkStorageMetadata(offsets=_size(value.field("offsets")), sizes=_size(value.field("sizes")))


def _index(value: Any) -> MetadataIndex:
    if not isinstance(value, IndexRecord):
        raise MetadataError("its list of stored values has another key than a name")
    offset, number = value.field("offset"), value.field("index")
    return MetadataIndex(
        _text(value.field("fqn")),
        None if offset is None else _size(offset),
        None if number is None else _number(number),
    )


def _stored(value: Any) -> _StorageInfo:
    if not isinstance(value, StoredRecord):
        raise MetadataError("its list of stored values has an entry without a file")
    name = _text(value.field("relative_path"))
    _require(is_plain_name(name), f"it names {name[:100]!r}, which is not a file of the checkpoint")
    # An extension of torch can change the bytes of a file, such as a decompression.
    _require(not value.field("transform_descriptors"), f"its {name} is stored in another form than plain bytes")
    return _StorageInfo(
        relative_path=name, offset=_number(value.field("offset")), length=_number(value.field("length"))
    )
