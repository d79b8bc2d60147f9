"""Converts JSON that another person may have written to records, and checks the keys and the types."""

import dataclasses
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from exact_titan.errors import InputError

AGAIN = "copy the dataset again or pack it again"

_hints = cache(get_type_hints)  # a manifest has thousands of records of a few kinds


def parse_record(kind: Any, value: Any, file: Path, key: str = "") -> Any:
    """Convert ``value`` to ``kind``: a dataclass, ``list[…]``, ``dict[str, …]``, a plain type, or one of them or None.

    Raises:
        InputError: if the value does not fit. The error names ``file`` and ``key``.
    """
    if NoneType in get_args(kind):
        return None if value is None else parse_record(get_args(kind)[0], value, file, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        record: Any = kind
        hints = _hints(record)
        optional = {one.name for one in dataclasses.fields(kind) if one.default_factory is not dataclasses.MISSING}
        parts = {}
        for name, hint in hints.items():
            where = f"{key}.{name}" if key else name
            if name not in value and name in optional:
                continue
            if name not in value:
                raise InputError(f"{file}: key {where!r} is missing: {AGAIN}")
            parts[name] = parse_record(hint, value[name], file, where)
        return kind(**parts)  # type: ignore[operator]
    if get_origin(kind) is list and isinstance(value, list):
        return [parse_record(get_args(kind)[0], item, file, f"{key}[{index}]") for index, item in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {
            _text(name, file, key): parse_record(get_args(kind)[1], item, file, f"{key}.{name}")
            for name, item in value.items()
        }
    # type() and not isinstance(), because True is not accepted as an integer.
    if type(value) is kind or (kind is float and type(value) is int):
        if kind is int and not 0 <= value < 2**63:
            # The shape of a number with thousands of digits must not fill the screen.
            shown = value if abs(value) < 2**128 else f"a number of {value.bit_length()} bits"
            raise InputError(f"{file}: key {key!r} is {shown}: it must be from 0 to 2^63 - 1: {AGAIN}")
        return _text(value, file, key) if kind is str else value
    names = {int: "an integer", float: "a number", str: "a string", list: "a list"}
    wanted = names.get(get_origin(kind) or kind, "an object")
    raise InputError(f"{file}: key {key!r} must be {wanted}, it is {value!r:.60}: {AGAIN}")


def _text(value: str, file: Path, key: str) -> str:
    """Return the text. A lone surrogate is no character: no terminal and no file can take it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{file}: key {key!r} has {value!r:.60}, which is not Unicode text: {AGAIN}") from None
    return value
