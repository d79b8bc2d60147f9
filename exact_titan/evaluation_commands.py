"""The commands of ``exact-titan eval``."""

from collections.abc import Callable

COMMANDS: dict[str, Callable[..., int | None]] = {}
