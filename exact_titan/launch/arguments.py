"""The arguments of a training run: a config and options, checked without torch.

1. :func:`read` splits ``--config`` from the options, and finds the config.
2. The keys of the TOML become settings. A setting is an option with its values as text.
3. The options of the command line become settings, too.
4. Every setting is checked: the name, the number of values, the type of each value, the choices.

A later setting of an option replaces an earlier setting. The command line comes after the TOML.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.launch import configs
from exact_titan.launch.options import POLICY, Option, table
from exact_titan.launch.setting_checks import check_policy, checked, unknown
from exact_titan.launch.toml_settings import read_toml

HELP = ("-h", "--help")
HELP_ALL = ("--help-all", "--help_all")


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
    check_policy(options, file, recipe, where="command line")
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
            settings[POLICY] = [checked(table().options[POLICY], policy, where)]
            continue
        if not argument.startswith("--") or argument == "--":
            raise InputError(f"{where}: {_stray(argument, last_switch)}")
        given, equals, value = argument[2:].partition("=")
        found = table().find(given)
        if found is None:
            raise InputError(f"{where}: {unknown(given)}")
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
            settings[option.name] = [checked(option, value, where)]
    return settings


def _stray(argument: str, switch: str) -> str:
    if switch:
        section, dot, last = switch.rpartition(".")
        return f"{argument!r} belongs to no option: write --{switch} for true, and --{section}{dot}no_{last} for false"
    if table().find(argument.lstrip("-").partition("=")[0]) is not None:
        return f"{argument!r} belongs to no option: an option starts with two dashes"
    return f"{argument!r} belongs to no option: an option takes one value, and a switch (--x.y or --x.no_y) takes none"
