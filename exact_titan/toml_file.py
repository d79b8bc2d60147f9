"""Reads a TOML file. A mistake is one line that names the file."""

import tomllib
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.file_errors import why


def read_toml_file(path: Path) -> dict[str, Any]:
    """Return the tree of a TOML file.

    Raises:
        InputError: naming the file, if the file is missing, unreadable or not TOML.
    """
    try:
        # Some editors write a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({why(error)})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None
