"""The trainer config from a recipe's name or a TOML file, and from command line options.

1. The value of ``--config`` names a recipe or a TOML file. A TOML file names its recipe.
2. The keys of the TOML become command line options with the same names.
3. The parser checks the options of the TOML alone, so that an error names the file.
4. The parser checks the options of the TOML and the command line together. The command line overrides the TOML.

A TOML names its ``recipe`` and the values that differ from the recipe. Its keys are the keys of torchtitan's config
tree::

    recipe = "from_scratch"

    [training]
    seq_len = 4096
"""

import contextlib
import difflib
import inspect
import io
import logging
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro
from torchtitan.config.manager import ConfigManager, custom_registry

from exact_titan import config_registry
from exact_titan.errors import InputError
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trainer import ExactTrainer

_SUBCOMMAND = re.compile(r"activation[-_]checkpoint:[a-z-]+")


def recipes() -> dict[str, Callable[[], RunConfig]]:
    """Return every recipe of :mod:`exact_titan.config_registry` by name."""
    functions = inspect.getmembers(config_registry, inspect.isfunction)
    return {
        name: fn for name, fn in functions if fn.__module__ == config_registry.__name__ and not name.startswith("_")
    }


def load_config(argv: list[str]) -> RunConfig:
    """Return the config of ``--config NAME_OR_TOML`` and the options in ``argv``. Options override the TOML.

    Raises:
        InputError: if a file, key or option is wrong. The message names the file, key or option.
        SystemExit: after ``--help``.
    """
    # torchtitan logs a warning about checkpoint defaults for every config object. Several objects are made here.
    logging.disable(logging.WARNING)
    try:
        return _load(*_split(argv))
    finally:
        logging.disable(logging.NOTSET)


def _load(name: str, options: list[str]) -> RunConfig:
    ConfigManager.register_tyro_rules(custom_registry)
    file_options: list[str] = []
    if name.endswith(".toml"):
        recipe, file_options = _read_toml(Path(name))
    else:
        recipe = name
    if recipe not in recipes():
        where = f"{name}: recipe" if name.endswith(".toml") else "--config"
        raise InputError(f"{where} is {recipe!r}: give a TOML file or one of the recipes {', '.join(recipes())}")
    config = recipes()[recipe]
    if "--help" in options:
        prog = f"exact_titan.train --config {name}"
        tyro.cli(ExactTrainer.Config, prog=prog, args=["--help"], default=config(), registry=custom_registry)
    if file_options:
        _parse(file_options, config(), where=name)
    return _parse(file_options + options, config(), where="command line")


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """Return the value of ``--config``, and the other arguments."""
    rest: list[str] = []
    names: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            names.append(next(arguments, ""))
        elif argument.startswith("--config="):
            names.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if len(names) != 1 or not names[0]:
        raise InputError(f"give --config once, with a TOML file or one of the recipes {', '.join(recipes())}")
    return names[0], rest


def _read_toml(path: Path) -> tuple[str, list[str]]:
    """Return the recipe that a TOML names, and the keys of the TOML as command line arguments."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None
    recipe = tree.pop("recipe", None)
    if not isinstance(recipe, str):
        raise InputError(
            f'{path}: the key recipe is missing: start with recipe = "NAME", one of {", ".join(recipes())}'
        )
    return recipe, list(_arguments(tree))


def _arguments(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, dict):
            yield from _arguments(value, name + ".")
        elif name == "activation_checkpoint":
            yield f"{name}:{value}"
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{key}"
        elif isinstance(value, list):
            yield f"--{name}"
            yield from (map(str, value) if name == "override.imports" else [",".join(map(str, value))])
        else:
            yield f"--{name}"
            yield str(value)


def _parse(arguments: list[str], default: RunConfig, *, where: str) -> RunConfig:
    # tyro requires a subcommand after all options of the parent parser.
    subcommands = [argument for argument in arguments if _SUBCOMMAND.fullmatch(argument)]
    ordered = [argument for argument in arguments if argument not in subcommands] + subcommands[-1:]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            config, unknown = tyro.cli(
                ExactTrainer.Config, args=ordered, default=default, registry=custom_registry, return_unknown_args=True
            )
    except SystemExit:
        raise InputError(f"{where}: {_first_message(output.getvalue())}") from None
    except (ValueError, AssertionError) as error:
        raise InputError(f"{where}: {error}") from None
    if unknown:
        raise InputError(f"{where}: {_unknown_message(unknown[0], default)}")
    return config


def _first_message(box: str) -> str:
    """Return the message in a tyro error box as one line: the text between the first two horizontal rules."""
    text = re.sub(r"[│╭╮╰╯]", " ", box)
    parts = re.split(r"[─-]{20,}", text)
    return " ".join(parts[1 if len(parts) > 2 else 0].split())


def _unknown_message(argument: str, default: RunConfig) -> str:
    if not argument.startswith("--"):
        return (
            f"{argument!r} belongs to no option: an option takes one value, and a switch (--x.y or --x.no-y) takes none"
        )
    name = argument[2:].replace("-", "_")
    known = list(_option_names(default))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "see --help for all keys"
    return f"there is no key {name}: {hint}"


def _option_names(config: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name.startswith("_"):
            continue
        if is_dataclass(value) and field.name != "model_spec":
            yield from _option_names(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
