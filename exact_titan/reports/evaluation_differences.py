"""The settings in which prompt sets or engines differ, for messages and notes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from exact_titan.evaluation.prompt_sets import PromptRecipe
from exact_titan.evaluation.scores import ScoredSet

_MAY_DIFFER = ("examples", "tasks")
"""Fields of a recipe that may differ between two models. Example ``k`` of a task does not depend on these fields."""


def engine_of(one: ScoredSet) -> dict[str, Any]:
    """Return the settings of the engine, flat: the keys of inner tables are joined by a dot."""
    return dict(_flat(one.answers.engine, ""))


def unlike_recipes(first: PromptRecipe, second: PromptRecipe) -> str:
    """Return the settings in which two recipes differ, with their values. Empty: the prompts of an id are the same."""
    a, b = (
        dict(_flat({key: value for key, value in asdict(one).items() if key not in _MAY_DIFFER}, ""))
        for one in (first, second)
    )
    return "; ".join(differences([a, b]))


def differences(settings: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield every name whose values differ, with the value of each of the settings."""
    for name in sorted({name for one in settings for name in one}):
        values = [one.get(name) for one in settings]
        if any(value != values[0] for value in values):
            yield f"{name}: {' / '.join(_short(value) for value in values)}"


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
