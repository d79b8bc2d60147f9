"""The settings of a TOML: every key is an option of a run, and every value becomes text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError, did_you_mean
from exact_titan.launch.options import Option, table
from exact_titan.launch.setting_checks import check_policy, checked, unknown
from exact_titan.system.toml_file import read_toml_file

_PATHS = "dataset_path"
"""Last part of the options that take several datasets: a list in a TOML, one value with commas on a command line."""


def read_toml(path: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the recipe that a TOML names, and the checked settings of the TOML.

    Raises:
        InputError: naming the file and the key.
    """
    return read_tree(read_toml_file(path), where=str(path))


def read_tree(tree: dict[str, Any], *, where: str) -> tuple[str, dict[str, list[str]]]:
    """Return the recipe and the checked settings of a tree of options, as of :func:`read_toml`.

    Args:
        tree: the content of a TOML. The keys may also be full names, such as ``training.steps``.
        where: the file, for messages.

    Raises:
        InputError: naming ``where`` and the key.
    """
    recipes, tree = table().recipes, dict(tree)
    if "recipe" not in tree:
        raise InputError(f'{where}: the key recipe is missing: start with recipe = "NAME", one of {", ".join(recipes)}')
    recipe = tree.pop("recipe")
    if recipe not in recipes:
        hint = did_you_mean(str(recipe), recipes)
        raise InputError(f"{where}: recipe is {_shown(recipe)}: give one of the recipes {', '.join(recipes)}{hint}")
    settings: dict[str, list[str]] = {}
    for key, value in _flat(tree):
        found = table().find(key)
        if found is None or found[1] is False:
            if isinstance(value, dict) and key.replace("-", "_") in table().sections:
                continue  # an empty section
            raise InputError(f"{where}: {unknown(key)}")
        option = found[0]
        if option.name in settings:
            raise InputError(f"{where}: {option.name} is set twice: remove one of the two keys")
        settings[option.name] = _from_toml(option, value, where)
    check_policy(settings, {}, recipe, where=where)
    return recipe, settings


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


_TOML_TYPES = {
    "bool": ((bool,), "true or false, without quotes"),
    "int": ((int, str), "an integer"),
    "float": ((int, float, str), "a number"),
    "choice": ((str,), ""),
    "str": ((str, int, float), "a text in quotes"),
    "list": ((list, str), "a list of texts"),
    "ints": ((list, int, str), "a list of integers"),
    "words": ((list, str), "a list of texts"),
}


def _from_toml(option: Option, value: Any, where: str) -> list[str]:
    """Return a value of a TOML as text, checked."""
    types, expected = _TOML_TYPES[option.type]
    if option.type == "choice" and not isinstance(value, str):
        close = "; did you mean none?" if value is False and "none" in option.choices else ""
        raise InputError(
            f"{where}: {option.name} is {_shown(value)}: choose one of {', '.join(option.choices)}, in quotes{close}"
        )
    if option.type == "str" and option.name.endswith(_PATHS):
        types = (*types, list)
    right = isinstance(value, types) and (option.type == "bool") == isinstance(value, bool)
    if isinstance(value, list):
        right = right and all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in value)
    if not right:
        raise InputError(f"{where}: {option.name} is {_shown(value)}: it must be {expected}")
    if option.type == "bool":
        return ["true" if value else "false"]
    if isinstance(value, list):
        texts = list(map(str, value))
        return texts if option.type == "words" else [checked(option, ",".join(texts), where)]
    return [checked(option, str(value), where)]


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
