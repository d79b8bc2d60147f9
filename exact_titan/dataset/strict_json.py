"""Reads JSON that another program or another person may have written, and converts JSON to records.

:func:`parse_json` refuses texts that Python's parser accepts although no JSON file should have them: NaN and infinite
numbers, a key that appears twice, deep nesting. :func:`parse_record` checks the keys and the types of a record.
"""

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from exact_titan.errors import InputError

AGAIN = "copy the dataset again or pack it again"
DEEPEST = 64
"""Nested brackets of the deepest JSON text. The deepest file of this package has 6."""


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: if the bytes are not JSON, are nested too deeply, or have a number that is not finite or a key that
            appears twice in one object. The message is one line.
    """
    try:
        value = json.loads(
            data.decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object_of_pairs
        )
    except RecursionError:
        value = None
        deep = True
    else:
        deep = _is_deep(value)
    if deep:
        raise ValueError(f"it has more than {DEEPEST} nested brackets")
    return value


def _is_deep(value: Any) -> bool:
    """Return whether the value has too many nested objects and lists. The function itself must not be recursive."""
    level = [value]
    for _ in range(DEEPEST):
        nested = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in nested for item in items if isinstance(item, dict | list)]
    return bool(level)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.40} is not a finite number")
    return number


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {double!r:.60} appears twice")
    return found


def parse_record(kind: Any, value: Any, file: Path, key: str = "") -> Any:
    """Convert ``value`` to ``kind``: a dataclass, ``list[…]``, ``dict[str, …]``, a plain type, or one of them or None.

    Raises:
        InputError: if the value does not fit. The error names ``file`` and ``key``.
    """
    if NoneType in get_args(kind):
        return None if value is None else parse_record(get_args(kind)[0], value, file, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
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
