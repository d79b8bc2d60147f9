"""Values of a JSON object in a model folder, checked one by one."""

import sys
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.models.architecture import LARGEST_SIZE


class JsonValues:
    """Reads values of a JSON object. A value that is missing or has another type is refused by the name of its key.

    Args:
        config: the JSON object.
        file: the file of the object, for messages.
        prefix: text before the names of the keys in messages, such as ``rope_scaling.``.
    """

    def __init__(self, config: dict[str, Any], file: Path, prefix: str = "") -> None:
        self.config = config
        self.file = file
        self._prefix = prefix

    def _value(self, key: str, default: float | None) -> Any:
        value = self.config.get(key, default)
        if value is None:
            raise InputError(f"{self.file}: {self._prefix}{key} is missing")
        return value

    def number(self, key: str, default: float | None = None, *, below: float = sys.float_info.max) -> float:
        """Return a number above 0 and below ``below``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
            limit = f" and below {below:g}" if below < sys.float_info.max else ""
            raise InputError(f"{self.file}: {self._prefix}{key} is {value!r:.60}: it must be a number above 0{limit}")
        return float(value)

    def positive(self, key: str, default: int | None = None, *, most: int = LARGEST_SIZE) -> int:
        """Return a whole number from 1 to ``most``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            limit = f" and {most} or less" if isinstance(value, int) and value > most else ""
            raise InputError(
                f"{self.file}: {self._prefix}{key} is {value!r:.60}: it must be a whole number of 1 or more{limit}"
            )
        return value

    def truth(self, key: str) -> bool:
        """Return true or false."""
        value = self._value(key, None)
        if not isinstance(value, bool):
            raise InputError(f"{self.file}: {self._prefix}{key} is {value!r:.60}: it must be true or false")
        return value
