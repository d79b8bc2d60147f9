"""The trainer config from a recipe's name or a TOML file, and from command line options.

1. :mod:`exact_titan.launch.arguments` finds the config, reads the TOML, and checks all names and values.
2. The parser of the config tree parses the options of the TOML alone, so that an error names the file.
3. The parser parses the options of the TOML and the command line together. The command line overrides the TOML.

A TOML names its ``recipe`` and the values that differ from the recipe. Its keys are the keys of torchtitan's config
tree::

    recipe = "from_scratch"

    [training]
    seq_len = 4096
"""

import contextlib
import functools
import inspect
import io
import logging
import re
from collections.abc import Callable
from typing import Any

import tyro
from torchtitan.config.manager import ConfigManager

from exact_titan import config_registry
from exact_titan.errors import InputError
from exact_titan.launch import arguments
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trainer import ExactTrainer


def recipes() -> dict[str, Callable[[], RunConfig]]:
    """Return every recipe of :mod:`exact_titan.config_registry` by name."""
    functions = inspect.getmembers(config_registry, inspect.isfunction)
    return {
        name: fn for name, fn in functions if fn.__module__ == config_registry.__name__ and not name.startswith("_")
    }


@functools.cache
def registry() -> tyro.constructors.ConstructorRegistry:
    """Return the parser's rules: torchtitan's rules, and lists that may be empty."""
    rules = tyro.constructors.ConstructorRegistry()
    ConfigManager.register_tyro_rules(rules)

    # The last rule of a type wins. torchtitan's rule reads an empty text as a list with one empty entry.
    @rules.primitive_rule
    def list_with_commas(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[list[Any]] | None:
        if info.type not in _LISTS:
            return None
        entry, metavar = _LISTS[info.type]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda texts: [entry(text) for text in texts[0].split(",") if text],
            is_instance=lambda value: isinstance(value, list) and all(isinstance(one, entry) for one in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return rules


_LISTS: dict[Any, tuple[type, str]] = {list[str]: (str, "A,B,C,..."), list[int]: (int, "1,2,3,...")}
"""Types of lists: the type of an entry, and the parser's name for a value."""


_WITHOUT_HELP = (tyro.conf.HelptextFromCommentsOff,)
"""The parser reads no comments of source files: :mod:`exact_titan.launch.help_pages` has the help."""


def load_config(argv: list[str]) -> RunConfig:
    """Return the config of ``--config CONFIG`` and the options in ``argv``. Options override the TOML.

    Raises:
        InputError: if a file, key or option is wrong. The message names the file, key or option.
    """
    return config_of(arguments.read(argv))


def config_of(given: arguments.Arguments, *, where: str | None = None) -> RunConfig:
    """Return the config of checked arguments.

    Args:
        given: the arguments.
        where: the file of the arguments, for messages. None: the command line, or the config of the arguments.

    Raises:
        InputError: if the config tree refuses a value. The message names the file or the option.
    """
    # torchtitan logs a warning about checkpoint defaults for every config object. Several objects are made here.
    logging.disable(logging.WARNING)
    try:
        recipe = recipes()[given.recipe]
        if given.file and given.options:
            _parse(arguments.tokens(given.file, given.recipe), recipe(), where=str(given.source))
        where = where or ("command line" if given.options else str(given.source))
        return _parse(arguments.tokens(given.file | given.options, given.recipe), recipe(), where=where)
    finally:
        logging.disable(logging.NOTSET)


def _parse(tokens: list[str], default: RunConfig, *, where: str) -> RunConfig:
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return tyro.cli(
                ExactTrainer.Config, args=tokens, default=default, registry=registry(), config=_WITHOUT_HELP
            )
    except SystemExit:
        raise InputError(f"{where}: {_first_message(output.getvalue())}") from None
    except (ValueError, AssertionError) as error:
        raise InputError(f"{where}: {error}") from None


def _first_message(box: str) -> str:
    """Return the message in a tyro error box as one line: the text between the first two horizontal rules."""
    text = re.sub(r"[│╭╮╰╯]", " ", box)
    parts = re.split(r"[─-]{20,}", text)
    return " ".join(parts[1 if len(parts) > 2 else 0].split())
