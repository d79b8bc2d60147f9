"""Reads JSON that somebody else may have written: bounded in size and in depth, and every fault is a ValueError."""

import json
from pathlib import Path
from typing import Any

LARGEST_BYTES = 2**28
"""Largest JSON file in bytes. The largest published ``tokenizer.json`` has 34 MB."""

DEEPEST = 64
"""Most brackets inside each other. The files of models, tokenizers, runs and studies have fewer than 12."""


def read_json(file: Path) -> Any:
    """Return the value of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: if the file is no JSON, is larger than :data:`LARGEST_BYTES`, or is nested deeper than
            :data:`DEEPEST`. The message is one line without the name of the file.
        OSError: if the file cannot be read.
    """
    with file.open("rb") as opened:
        data = opened.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text. The errors are those of :func:`read_json`."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        pass
    else:
        if not is_deep(value):
            return value
    raise ValueError(f"it has more than {DEEPEST} brackets inside each other")


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        ValueError, OSError: as :func:`read_json`, and if the value is no object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def is_deep(value: Any) -> bool:
    """Return whether the value has too many brackets inside each other. The function itself must not be recursive."""
    level = [value]
    for _ in range(DEEPEST + 1):
        nested = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in nested for item in items if isinstance(item, dict | list)]
    return bool(level)
