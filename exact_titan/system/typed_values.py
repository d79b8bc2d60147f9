"""JSON values and type annotations. A file of somebody else may have any value in any place.

1. Dataclasses and typed dictionaries say the types of the values of a file.
2. :func:`wrong_value` names the first value of another type by its key, such as ``splits.train.shards[0].bytes``.
3. :func:`parse_typed` refuses a file with such a value, and returns the dataclass of the other values.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from exact_titan.errors import InputError

_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", types.NoneType: "null"}


def has_default(field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field of a dataclass has a default."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a file may have besides values of the right types.

    Attributes:
        may_lack: whether the values of a dataclass may lack a field. A typed dictionary may lack every key.
        other_names: whether the values of a dataclass may have names that are no field.
        least: the smallest integer, -2^63 or more. The largest integer is 2^63 - 1.
        only_unicode: whether every string is Unicode text. Otherwise a string may also be a file name that is not
            UTF-8.
    """

    may_lack: Callable[["dataclasses.Field[Any]"], bool]
    other_names: bool
    least: int = -(2**63)
    only_unicode: bool = False


TYPES_ALONE = Rules(may_lack=lambda field: True, other_names=True)
"""For the files of several versions: only the types of the values are checked."""

WHOLE_RECORD = Rules(may_lack=has_default, other_names=False)
"""For the files of one version: the names are checked too."""


def fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has the type of an annotation (:func:`wrong_value`)."""
    return wrong_value(value, hint) is None


def parse_typed(kind: type[Any], value: Any, where: str, *, way_out: str, rules: Rules) -> Any:
    """Return the dataclass ``kind`` of a JSON value. Lists become tuples where the annotation is a tuple.

    Args:
        kind: the dataclass.
        value: the value.
        where: the file, with the line if the file has several values.
        way_out: the end of the message.
        rules: the rules of the file.

    Raises:
        InputError: if the value does not fit. The message names ``where`` and the key.
    """
    if (wrong := wrong_value(value, kind, rules=rules)) is not None:
        raise InputError(f"{where}: {wrong}: {way_out}")
    return built(value, kind)


def wrong_value(value: Any, hint: Any, *, key: str = "", rules: Rules = TYPES_ALONE) -> str | None:
    """Return which part of a JSON value does not fit an annotation. None: the value fits.

    A list fits a tuple. An object fits a dataclass or a typed dictionary. True and False are no numbers. An integer has
    64 bits, and fits float.

    Args:
        value: the value of the file.
        hint: the annotation.
        key: the key of the value in the file. Empty: the value is the whole file.
        rules: the rules of the file.
    """
    return next(_wrong_values(value, hint, key, rules), None)


def built(value: Any, hint: Any) -> Any:
    """Return a value that fits (:func:`wrong_value`) with the dataclasses and tuples of the annotation."""
    origin, inner = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        kind: Any = hint
        hints = _hints_of(kind)
        return kind(**{name: built(one, hints[name]) for name, one in value.items() if name in hints})
    if origin in (Union, types.UnionType):
        return built(value, next(one for one in inner if fits(value, one)))
    if origin in (tuple, list):
        return origin(built(one, inner[0]) for one in value)
    if origin is dict:
        return {name: built(one, inner[1]) for name, one in value.items()}
    return value


def _wrong_values(value: Any, hint: Any, key: str, rules: Rules) -> Iterator[str]:
    subject = f"key {key!r}" if key else "the content"
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin in (Union, types.UnionType):
        options = [one for one in inner if one is not types.NoneType]
        if value is None and len(options) < len(inner):
            return
        if len(options) == 1:
            yield from _wrong_values(value, options[0], key, rules)
            return
        is_wrong = all(wrong_value(value, one, rules=rules) is not None for one in options)
    elif origin is Literal:
        is_wrong = not any(type(value) is type(one) and value == one for one in inner)
    elif _has_fields(hint):
        if is_object := isinstance(value, dict):
            yield from _wrong_fields(value, hint, key, rules)
        is_wrong = not is_object
    elif origin in (tuple, list):
        if is_list := isinstance(value, list | tuple):
            for index, one in enumerate(value):
                yield from _wrong_values(one, inner[0], f"{key}[{index}]", rules)
        is_wrong = not is_list
    elif origin is dict:
        if is_object := isinstance(value, dict):
            for name, one in value.items():
                yield from _wrong_values(name, str, key, rules)
                yield from _wrong_values(one, inner[1], _inside(key, name), rules)
        is_wrong = not is_object
    elif hint in (int, float) and type(value) is int:
        is_wrong = False
        if not rules.least <= value < 2**63:
            # The shape of a number with thousands of digits must not fill the screen.
            shown = value if abs(value) < 2**128 else f"a number of {value.bit_length()} bits"
            least = "-2^63" if rules.least == -(2**63) else rules.least
            yield f"{subject} is {shown}: it must be from {least} to 2^63 - 1"
    elif hint in (int, float):
        is_wrong = type(value) is not hint
    else:
        is_wrong = not isinstance(value, types.NoneType if hint is None else hint)
        if rules.only_unicode and not is_wrong and isinstance(value, str) and not _is_unicode(value):
            # No terminal and no file can take a lone surrogate.
            yield f"{subject} has {value!r:.60}, which is not Unicode text"
    if is_wrong:
        yield f"{subject} is {value!r:.60}: it must be {_name(hint)}"


def _wrong_fields(values: dict[str, Any], kind: Any, key: str, rules: Rules) -> Iterator[str]:
    hints = _hints_of(kind)
    needed = set()
    if dataclasses.is_dataclass(kind):
        needed = {field.name for field in dataclasses.fields(kind) if not rules.may_lack(field)}
        # A misspelled name is both unknown and missing. The unknown name shows the mistake.
        if not rules.other_names:
            yield from (f"key {_inside(key, name)!r} is unknown" for name in sorted(set(values) - set(hints)))
    for name, hint in hints.items():
        if name in values:
            yield from _wrong_values(values[name], hint, _inside(key, name), rules)
        elif name in needed:
            yield f"key {_inside(key, name)!r} is missing"


def _inside(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_name(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    kind = get_origin(hint) or hint
    return "a list" if kind in (list, tuple) else _NAMES.get(kind, "an object")


def _has_fields(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or is_typeddict(hint)


@functools.cache
def _hints_of(kind: type) -> dict[str, Any]:
    """Return the annotations of the fields of a dataclass, or of the keys of a typed dictionary."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)} if not is_typeddict(kind) else hints


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
