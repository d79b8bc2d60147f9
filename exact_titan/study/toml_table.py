"""A table of a TOML file whose keys are all checked."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn, TypeGuard

from exact_titan.errors import InputError, did_you_mean


class TomlTable:
    """A table of a TOML file. Every key is taken once, and :meth:`end` refuses the rest.

    All methods raise :class:`InputError` with the file and the key.

    Args:
        tree: the table.
        where: the file, for messages.
        prefix: the name of the table with a dot, for messages. Empty: the top of the file.
    """

    def __init__(self, tree: dict[str, Any], where: str, prefix: str = "") -> None:
        self._rest, self._where, self._prefix = dict(tree), where, prefix
        self._known: list[str] = []

    def take(self, key: str) -> Any:
        """Return the value of a key, or None."""
        self._known.append(key)
        return self._rest.pop(key, None)

    def text(self, key: str) -> str:
        """Return a text. The key must be there."""
        value = self.take(key)
        if value is None:
            self.fail(f'{key} is missing: write {key} = "…"')
        if not isinstance(value, str) or not value.strip():
            self.wrong(key, value, "a text in quotes")
        return value

    def number(self, key: str, default: Any, *, least: int = 0) -> Any:
        """Return an integer of at least ``least``, or the default."""
        value = self.take(key)
        if value is None:
            return default
        if not _is_integer(value) or value < least:
            self.wrong(key, value, f"an integer, {least} or more")
        return value

    def numbers(self, key: str, *, default: tuple[int, ...] | None = None, example: str = "") -> tuple[int, ...]:
        """Return a list of different integers, or the default. Without a default the key must be there."""
        value = self.take(key)
        if value is None:
            if default is None:
                self.fail(f"{key} is missing: write {key} = {example}, one run of every arm for each")
            return default
        if not isinstance(value, list) or not value or not all(_is_integer(one) and one >= 0 for one in value):
            self.wrong(key, value, "a list of integers, 0 or more")
        if repeated := repeated_value(value):
            self.wrong(key, value, f"a list without repetition, and {repeated} is there twice")
        return tuple(value)

    def options(self, key: str) -> dict[str, Any]:
        """Return a table of any content. The default is an empty table."""
        value = self.take(key)
        if not isinstance(value, dict | None):
            self.wrong(key, value, f"a table of options, [{key}]")
        return value or {}

    def tables(self, key: str) -> list["TomlTable"]:
        """Return the tables of an array of tables, ``[[key]]``. The key must be there."""
        value = self.take(key)
        if value is None:
            self.fail(f"{key} is missing: write one [[{key}]] or more")
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            self.wrong(key, value, f"tables, [[{key}]]")
        return [TomlTable(one, self._where, f"{key}[{number}].") for number, one in enumerate(value)]

    def end(self) -> None:
        """Refuse all keys that were not taken."""
        for key in self._rest:
            hint = did_you_mean(key, self._known) or f"; the keys are {', '.join(self._known)}"
            self.fail(f"there is no key {self._prefix}{key}{hint}", prefix="")

    def wrong(self, key: str, value: Any, expected: str) -> NoReturn:
        self.fail(f"{key} is {json.dumps(value, ensure_ascii=False, default=str)}: it must be {expected}")

    def fail(self, message: str, *, prefix: str | None = None) -> NoReturn:
        raise InputError(f"{self._where}: {self._prefix if prefix is None else prefix}{message}")


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def repeated_value(values: Sequence[Any]) -> str:
    """Return the first value that is there twice, as text. Empty: every value is there once."""
    return next((str(value) for number, value in enumerate(values) if value in values[:number]), "")
