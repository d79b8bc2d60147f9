"""An unpickler that runs no code: the classes of a checkpoint's pickle become inert records.

The unpickler is Python's own implementation in Python, not the implementation in C. The C implementation allocates the
memory that a pickle asks for: six bytes can ask for 64 GiB. Cost: 58,000 stored pieces (900 tensors on 64 ranks) take
6 seconds instead of 3 seconds on a slow core.
"""

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import torch

_METADATA = "torch.distributed.checkpoint.metadata"


class MetadataError(ValueError):
    """A ``.metadata`` is damaged, or names something that no checkpoint names. The message is the reason."""


class Record:
    """An object of the pickle: arguments and state, without behaviour."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def field(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the object."""
        if not isinstance(self.state, dict):
            raise MetadataError(f"its {type(self).__name__.removesuffix('Record')} has no attributes")
        return self.state.get(name, default)


class MetadataRecord(Record): ...


class IndexRecord(Record): ...


class ChunkRecord(Record): ...


class TensorRecord(Record): ...


class BytesRecord(Record): ...


class PropertiesRecord(Record): ...


class StoredRecord(Record): ...


class SizeRecord(Record): ...


class UnusedRecord(Record): ...


_RECORDS: dict[tuple[str, str], type[Record]] = {
    (_METADATA, "Metadata"): MetadataRecord,
    (_METADATA, "MetadataIndex"): IndexRecord,
    (_METADATA, "ChunkStorageMetadata"): ChunkRecord,
    (_METADATA, "TensorStorageMetadata"): TensorRecord,
    (_METADATA, "BytesStorageMetadata"): BytesRecord,
    (_METADATA, "TensorProperties"): PropertiesRecord,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StoredRecord,
    ("torch", "Size"): SizeRecord,
    # The builder ignores the memory layout, and the path and the time of the save.
    (_METADATA, "StorageMeta"): UnusedRecord,
    (_METADATA, "_MEM_FORMAT_ENCODING"): UnusedRecord,
    ("torch.serialization", "_get_layout"): UnusedRecord,
    ("pathlib", "PosixPath"): UnusedRecord,
    ("pathlib._local", "PosixPath"): UnusedRecord,  # Python 3.13
}
"""All classes and functions that a checkpoint of torch 2.13 to 2.15 names. Data types of torch come in addition."""

_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
    *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.STACK_GLOBAL),
)
"""The opcodes that the unpickler takes from Python's. Python 3.8 and later write ``.metadata`` with protocol 4 or 5."""


class RecordUnpickler(pickle._Unpickler):
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
        if not (isinstance(kind, type) and issubclass(kind, Record) and isinstance(args, tuple)):
            raise MetadataError("it calls something that no checkpoint of torch calls")
        self.stack[-1] = kind(*args)

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
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
        if type(target) is not dict or not all(isinstance(key, str | Record) for key in keys):
            raise MetadataError("it has a table with keys that no checkpoint has")
        target.update(zip(keys, values, strict=True))

    dispatch: ClassVar[dict[int, Any]] = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES} | {
        pickle.REDUCE[0]: _make,
        pickle.NEWOBJ[0]: _make,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }
