"""The arguments of a training run: a config and options, checked without torch.

1. :func:`read` splits ``--config`` from the options, and finds the config.
2. The keys of the TOML become settings. A setting is an option with its values as text.
3. The options of the command line become settings, too.
4. Every setting is checked: the name, the number of values, the type of each value, the choices.

A later setting of an option replaces an earlier setting. The command line comes after the TOML.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError, did_you_mean
from exact_titan.launch import configs
from exact_titan.launch.options import POLICY, Option, table
from exact_titan.system.toml_file import read_toml_file

HELP = ("-h", "--help")
HELP_ALL = ("--help-all", "--help_all")

_FORMER = {
    "activation_checkpoint.mode": 'write activation_checkpoint = "full" above the first [section]',
    "job.dump_folder": "write dump_folder above the first [section]",
    "lr_scheduler.lr_min": "it is lr_scheduler.min_lr_factor now",
    "model.flavor": 'write model = "FOLDER" above the first [section]',
    "model.hf_assets_path": "write hf_assets_path above the first [section]",
    "model.name": 'write model = "FOLDER" above the first [section]',
    "optimizer.name": "the optimizer is AdamW: leave the key out",
    "training.compile": "it is compile.enable now",
    "training.dataset": "name packed datasets in dataloader.dataset_path",
    "training.dataset_path": "it is dataloader.dataset_path now",
    "training.seed": "it is debug.seed now",
}
"""Keys of older torchtitan versions, and their place today."""

_PATHS = "dataset_path"
"""Last part of the options that take several datasets: a list in a TOML, one value with commas on a command line."""


@dataclass(frozen=True)
class Arguments:
    """A checked config with its options.

    Attributes:
        source: the config that ``--config`` means.
        recipe: name of the recipe.
        file: values of the options in the TOML by name, as text. A switch has the value ``true`` or ``false``.
        options: values of the options on the command line by name.
        help: the help page that the command line asks for: ``help``, ``help-all`` or nothing.
    """

    source: configs.Source | None = None
    recipe: str = ""
    file: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)
    help: str = ""

    def value(self, name: str) -> Any:
        """Return the value of an option in force: the text of the last setting, or the default of the recipe."""
        given = self.options.get(name) or self.file.get(name)
        return ",".join(given) if given is not None else table().defaults[self.recipe][name]

    @property
    def dump_folder(self) -> Path:
        """The folder of the run, with the name of the rule for ``{rule}``."""
        return Path(str(self.value("dump_folder")).replace("{rule}", str(self.value("loss.rule"))))


def read(argv: list[str]) -> Arguments:
    """Return the checked arguments of ``--config CONFIG [--section.option VALUE …]``.

    Raises:
        InputError: naming the file, the key or the option.
    """
    page = "help-all" if any(a in HELP_ALL for a in argv) else "help" if any(a in HELP for a in argv) else ""
    names, rest = _split([argument for argument in argv if argument not in (*HELP, *HELP_ALL)])
    if page and not names:
        return Arguments(help=page)
    if len(names) != 1 or not names[0]:
        known = ", ".join(table().recipes)
        raise InputError(
            f"give --config once, with a TOML file, one of the recipes {known}, or a name of `exact-titan configs`"
        )
    source = configs.find(names[0], where="--config")
    recipe, file = (source.name, {}) if source.file is None else read_toml(source.file)
    options = _command_line(rest)
    _check_policy(options, file, recipe, where="command line")
    return Arguments(source, recipe, file, options, page)


def tokens(settings: dict[str, list[str]], recipe: str) -> list[str]:
    """Return settings as arguments for tyro. Activation checkpointing comes last, with the options of its policy."""
    words: list[str] = []
    plain: list[str] = []
    policy: list[str] = []
    for name, values in settings.items():
        option = table().options[name]
        if name == POLICY:
            continue
        (policy if option.policies else words if option.type == "words" else plain).extend(_tokens(option, values))
    if policy or POLICY in settings:
        chosen = settings.get(POLICY, [table().defaults[recipe][POLICY]])[-1]
        policy = [f"{POLICY}:{chosen}", *policy]
    if words and not plain:
        # An option with any number of values would take the policy as a value. One option must stand between them.
        plain = [f"--dump_folder={table().defaults[recipe]['dump_folder']}"]
    return [*words, *plain, *policy]


def _tokens(option: Option, values: list[str]) -> list[str]:
    if option.type == "bool":
        section, dot, last = option.name.rpartition(".")
        return [f"--{section}{dot}{'' if values[0] == 'true' else 'no_'}{last}"]
    if option.type == "words":
        return [f"--{option.name}", *values]
    return [f"--{option.name}={values[0]}"]


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return all values of ``--config``, and the other arguments."""
    names: list[str] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            names.append(next(arguments, ""))
        elif argument.startswith("--config="):
            names.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    return names, rest


def _command_line(arguments: list[str]) -> dict[str, list[str]]:
    where = "command line"
    settings: dict[str, list[str]] = {}
    rest = list(reversed(arguments))
    last_switch = ""
    while rest:
        argument = rest.pop()
        prefix, colon, policy = argument.partition(":")
        if colon and prefix.replace("-", "_") == POLICY:
            settings[POLICY] = [_checked(table().options[POLICY], policy, where)]
            continue
        if not argument.startswith("--") or argument == "--":
            raise InputError(f"{where}: {_stray(argument, last_switch)}")
        given, equals, value = argument[2:].partition("=")
        found = table().find(given)
        if found is None:
            raise InputError(f"{where}: {_unknown(given)}")
        option, switch = found
        last_switch = option.name if switch is not None else ""
        if switch is not None:
            if equals:
                raise InputError(f"{where}: {_stray(value, option.name)}")
            settings[option.name] = ["true" if switch else "false"]
        elif option.type == "words":
            values = [value] if equals else []
            while rest and not rest[-1].startswith("--"):
                values.append(rest.pop())
            settings[option.name] = values
        else:
            if not equals:
                if not rest or rest[-1].startswith("--"):
                    raise InputError(
                        f"{where}: {option.name} has no value: write --{option.name} VALUE, or "
                        f"--{option.name}=VALUE for a value that starts with --"
                    )
                value = rest.pop()
            settings[option.name] = [_checked(option, value, where)]
    return settings


def _stray(argument: str, switch: str) -> str:
    if switch:
        section, dot, last = switch.rpartition(".")
        return f"{argument!r} belongs to no option: write --{switch} for true, and --{section}{dot}no_{last} for false"
    if table().find(argument.lstrip("-").partition("=")[0]) is not None:
        return f"{argument!r} belongs to no option: an option starts with two dashes"
    return f"{argument!r} belongs to no option: an option takes one value, and a switch (--x.y or --x.no_y) takes none"


def _checked(option: Option, value: str, where: str) -> str:
    wrong = option.wrong(value)
    if wrong:
        raise InputError(f"{where}: {wrong}")
    return value


def _unknown(name: str) -> str:
    name = name.replace("-", "_")
    if name in _FORMER:
        return f"there is no key {name}: {_FORMER[name]}"
    if name in table().sections:
        inside = [option for option in table().options if option.startswith(f"{name}.")]
        return f"{name} is a section, not an option: set one of its options, such as {inside[0]}"
    close = table().closest(name)
    return f"there is no key {name}: {f'did you mean {close}?' if close else 'see --help-all for all keys'}"


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
            raise InputError(f"{where}: {_unknown(key)}")
        option = found[0]
        if option.name in settings:
            raise InputError(f"{where}: {option.name} is set twice: remove one of the two keys")
        settings[option.name] = _from_toml(option, value, where)
    _check_policy(settings, {}, recipe, where=where)
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
        return texts if option.type == "words" else [_checked(option, ",".join(texts), where)]
    return [_checked(option, str(value), where)]


def _check_policy(settings: dict[str, list[str]], file: dict[str, list[str]], recipe: str, *, where: str) -> None:
    """Check that the chosen policy of activation checkpointing has the options that are set for a policy."""
    chosen = (settings.get(POLICY) or file.get(POLICY) or [table().defaults[recipe][POLICY]])[-1]
    for name in settings:
        policies = table().options[name].policies
        if policies and chosen not in policies:
            raise InputError(
                f"{where}: {name} is set, but {POLICY} is {chosen}, and only {', '.join(policies)} has this option"
            )


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
