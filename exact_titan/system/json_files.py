"""Reads JSON that somebody else may have written: bounded in size and in depth, and every fault is a ValueError."""

import json
import re
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.system.bounded_files import read_bounded

LARGEST_BYTES = 2**28
"""Largest JSON file in bytes. The largest published ``tokenizer.json`` has 34 MB."""

DEEPEST = 64
"""Most brackets inside each other. The files of models, tokenizers, runs and studies have fewer than 12."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""A character of a surrogate pair in JSON."""


def read_json(file: Path) -> Any:
    """Return the value of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: if the file is no JSON in UTF-8, is no regular file, is larger than :data:`LARGEST_BYTES`, or is
            nested deeper than :data:`DEEPEST`. The message is one line without the name of the file.
        OSError: if the file cannot be read.
    """
    return parse_json(read_bounded(file, LARGEST_BYTES))


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text. The errors are those of :func:`read_json`."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        pass
    else:
        if not is_deep(value):
            if _SURROGATE.search(data) is not None:
                # A name with half of a pair is not the name of any file, and cannot be written as UTF-8. The bytes of a
                # file name that is not UTF-8 stay.
                json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
            return value
    raise ValueError(f"it has more than {DEEPEST} brackets inside each other")


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        ValueError, OSError: as :func:`read_json`, and if the value is no object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"its value is {value!r:.60}")
    return value


def read_optional_object(file: Path, *, way_out: str) -> dict[str, Any]:
    """Return the JSON object of a file. Empty if there is no such file.

    Args:
        file: the file.
        way_out: the end of the message.

    Raises:
        InputError: if the file is no JSON object.
        OSError: if the file cannot be read.
    """
    try:
        return read_json_object(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{file} is not a JSON object ({error}): {way_out}") from None


def is_deep(value: Any) -> bool:
    """Return whether the value has too many brackets inside each other. The function itself must not be recursive."""
    level = [value]
    for _ in range(DEEPEST + 1):
        nested = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in nested for item in items if isinstance(item, dict | list)]
    return bool(level)
