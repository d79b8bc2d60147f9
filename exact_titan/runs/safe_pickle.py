"""Reads the ``.metadata`` of a distributed checkpoint without running code.

``.metadata`` is a pickle, and Python's unpickler calls every function that a pickle names. A checkpoint may come from
somebody else. This module therefore reads the pickle in two steps:

1. :class:`_Unpickler` knows only the opcodes and the names in the pickles of torch's own checkpoints. Every named class
   becomes an inert :class:`_Record`. No class of torch and no function of the pickle's choice is called.
2. :class:`_Builder` makes torch's :class:`Metadata` from the records. The builder checks every type, name and number.

The unpickler is Python's own implementation in Python, not the implementation in C. The C implementation allocates the
memory that a pickle asks for: six bytes can ask for 64 GiB. Cost: 58,000 stored pieces (900 tensors on 64 ranks) take
6 seconds instead of 3 seconds on a slow core.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

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

from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.folder_files import is_plain_name

LARGEST_BYTES = 2**30
"""Largest ``.metadata`` in bytes. A stored piece needs about 150 bytes: 1,000 tensors with their optimizer on
1,000 ranks, 3 million pieces, need half of this size."""

_MOST_DIMENSIONS = 64  # torch's limit
_LARGEST_NUMBER = 2**63 - 1

_METADATA = "torch.distributed.checkpoint.metadata"


class MetadataError(ValueError):
    """A ``.metadata`` is damaged, or names something that no checkpoint names. The message is the reason."""


class _Record:
    """An object of the pickle: arguments and state, without behaviour."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def field(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the object."""
        if not isinstance(self.state, dict):
            raise MetadataError(f"its {type(self).__name__.strip('_')} has no attributes")
        return self.state.get(name, default)


class _Metadata(_Record): ...


class _Index(_Record): ...


class _Chunk(_Record): ...


class _Tensor(_Record): ...


class _Bytes(_Record): ...


class _Properties(_Record): ...


class _Stored(_Record): ...


class _Size(_Record): ...


class _Unused(_Record): ...


_RECORDS: dict[tuple[str, str], type[_Record]] = {
    (_METADATA, "Metadata"): _Metadata,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "BytesStorageMetadata"): _Bytes,
    (_METADATA, "TensorProperties"): _Properties,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Stored,
    ("torch", "Size"): _Size,
    # The builder ignores the memory layout, and the path and the time of the save.
    (_METADATA, "StorageMeta"): _Unused,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _Unused,
    ("torch.serialization", "_get_layout"): _Unused,
    ("pathlib", "PosixPath"): _Unused,
    ("pathlib._local", "PosixPath"): _Unused,  # Python 3.13
}
"""All classes and functions that a checkpoint of torch 2.13 to 2.15 names. Data types of torch come in addition."""

_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
    *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.STACK_GLOBAL),
)
"""The opcodes that the unpickler takes from Python's. Python 3.8 and later write ``.metadata`` with protocol 4 or 5."""


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        record = _RECORDS.get((module, name))
        if record is not None:
            return record
        # torch imports some modules at the first access, so getattr could import.
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise MetadataError(
            f"it names {f'{module}.{name}'[:100]!r}, which no checkpoint of torch names: it may run code"
        )

    def _make(self) -> None:
        args = self.stack.pop()
        kind = self.stack[-1]
        if not (isinstance(kind, type) and issubclass(kind, _Record) and isinstance(args, tuple)):
            raise MetadataError("it calls something that no checkpoint of torch calls")
        self.stack[-1] = kind(*args)

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Record):
            raise MetadataError("it changes something that is not part of a checkpoint")
        self.stack[-1].state = state

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._set(items[::2], items[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key], [value])

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        # The hash of a tuple in a million tuples overflows the stack of the process.
        if type(target) is not dict or not all(isinstance(key, str | _Record) for key in keys):
            raise MetadataError("it has a table with keys that no checkpoint has")
        target.update(zip(keys, values, strict=True))

    dispatch: ClassVar[dict[int, Any]] = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES} | {
        pickle.REDUCE[0]: _make,
        pickle.NEWOBJ[0]: _make,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


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
        root = _Unpickler(io.BytesIO(data)).load()
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
        _require(isinstance(root, _Metadata), "it is not the metadata of a checkpoint")
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
        if isinstance(value, _Bytes):
            _require(MetadataIndex(name) in storage, f"it does not say where {name:.100} is stored")
            return BytesStorageMetadata()
        _require(isinstance(value, _Tensor), f"its {name:.100} is neither a tensor nor bytes")
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
    args = value.args if isinstance(value, _Size) else ()
    # torch.Size is pickled with one argument, a tuple.
    if len(args) != 1 or not isinstance(args[0], tuple) or len(args[0]) > _MOST_DIMENSIONS:
        raise MetadataError("one of its sizes is not a size")
    return torch.Size(map(_number, args[0]))


def _dtype(properties: Any) -> torch.dtype:
    # torch 2.13 stores five properties, torch 2.15 six. The data type is the first.
    state = properties.state if isinstance(properties, _Properties) else None
    if not isinstance(state, tuple) or not state or not isinstance(state[0], torch.dtype):
        raise MetadataError("one of its tensors has no data type")
    return state[0]


def _chunk(value: Any) -> ChunkStorageMetadata:
    if not isinstance(value, _Chunk):
        raise MetadataError("one of its chunks is not a chunk")
    return ChunkStorageMetadata(offsets=_size(value.field("offsets")), sizes=_size(value.field("sizes")))


def _index(value: Any) -> MetadataIndex:
    if not isinstance(value, _Index):
        raise MetadataError("its list of stored values has another key than a name")
    offset, number = value.field("offset"), value.field("index")
    return MetadataIndex(
        _text(value.field("fqn")),
        None if offset is None else _size(offset),
        None if number is None else _number(number),
    )


def _stored(value: Any) -> _StorageInfo:
    if not isinstance(value, _Stored):
        raise MetadataError("its list of stored values has an entry without a file")
    name = _text(value.field("relative_path"))
    _require(is_plain_name(name), f"it names {name[:100]!r}, which is not a file of the checkpoint")
    # An extension of torch can change the bytes of a file, such as a decompression.
    _require(not value.field("transform_descriptors"), f"its {name} is stored in another form than plain bytes")
    return _StorageInfo(
        relative_path=name, offset=_number(value.field("offset")), length=_number(value.field("length"))
    )
