"""Reads a TOML file. A mistake is one line that names the file."""

import re
import tomllib
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.system.file_errors import why
from exact_titan.system.json_files import DEEPEST, is_deep

LARGEST_BYTES = 2**24
"""Largest TOML file in bytes, 16 MiB: 100,000 sources of a corpus."""

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
# The parser needs time and memory for the square of the parts of a key such as a.b.c.
_DEEP_KEY = re.compile(rf"(?<![\w.-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{DEEPEST},}}")


def read_toml_file(path: Path) -> dict[str, Any]:
    """Return the tree of a TOML file.

    Raises:
        InputError: naming the file, if the file is missing, unreadable or not TOML.
    """
    try:
        return parse_toml_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({why(error)})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None


def parse_toml_file(path: Path) -> dict[str, Any]:
    """Return the tree of a TOML file. Some editors write a byte order mark, which is left out.

    Raises:
        ValueError: if the file is not TOML in UTF-8, is larger than :data:`LARGEST_BYTES`, or is nested deeper than 64
            tables and lists (:data:`exact_titan.system.json_files.DEEPEST`). The message does not name the file.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as opened:
        data = opened.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if not _DEEP_KEY.search(text):
        try:
            tree = tomllib.loads(text)
        except RecursionError:
            pass
        else:
            if not is_deep(tree):
                return tree
    raise ValueError(f"it has more than {DEEPEST} tables and lists inside each other")
