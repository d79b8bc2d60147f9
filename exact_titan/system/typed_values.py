"""Compares JSON values with type annotations. A file of somebody else may have any value in any place."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**63


def wrong_field(kind: type, values: Mapping[str, Any]) -> str | None:
    """Return the first field of a dataclass whose value has another type, with its value. None: there is no such field.

    The values may lack fields, and may have other names.
    """
    hints = hints_of(kind)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            return f"{name} is {value!r:.60}"
    return None


def fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has the type of an annotation. A list fits a tuple, and an object fits a dataclass.

    True and False are no numbers. A whole number has 64 bits, and fits float.
    """
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (int, float):
        whole = type(value) is int and -_LARGEST <= value < _LARGEST
        return whole or (hint is float and type(value) is float)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and wrong_field(hint, value) is None  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    return isinstance(value, hint)


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the annotations of the fields of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
