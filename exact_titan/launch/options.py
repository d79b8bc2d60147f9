"""The options of a training run: names, types, choices, defaults and help, read from ``options.json``."""

import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import did_you_mean

FILE = Path(__file__).parent / "options.json"
"""Written by ``python -m exact_titan.describe_options``."""

POLICY = "activation_checkpoint"
"""The option that chooses a policy. The policy has further options, ``activation_checkpoint.NAME``."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: name with underscores and with the section, such as ``training.seq_len``.
        type: ``bool``, ``int``, ``float``, ``str``, ``choice``, ``list`` (one value with commas), ``ints`` (the same
            with integers) or ``words`` (any number of values).
        optional: whether the value may be ``None``.
        choices: all values of a ``choice``.
        policies: the values of ``activation_checkpoint`` that have this option. Empty for all other options.
        hidden: whether this package refuses every value but one. The help does not show such options.
        help: what the option does.
    """

    name: str
    type: str
    help: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    hidden: bool = False

    def wrong(self, text: str) -> str | None:
        """Return how a value from a command line is wrong, or None."""
        if self.optional and text == "None":
            return None
        if self.type == "choice" and text not in self.choices:
            return f"{self.name} is {text!r}: choose one of {', '.join(self.choices)}{did_you_mean(text, self.choices)}"
        if self.type == "int" and not _converts(int, text):
            return f"{self.name} is {text!r}: it must be an integer"
        if self.type == "ints" and not all(_converts(int, one) for one in text.split(",") if one):
            return f"{self.name} is {text!r}: it must be integers with commas between them"
        if self.type == "float" and not _converts(float, text):
            return f"{self.name} is {text!r}: it must be a number"
        return None


@dataclass(frozen=True)
class Table:
    """All options, and the default values of every recipe.

    Attributes:
        options: every option by its name.
        recipes: the description of every recipe by its name.
        defaults: per recipe, the default of every option by its name.
    """

    options: dict[str, Option]
    recipes: dict[str, str]
    defaults: dict[str, dict[str, Any]]

    @property
    def sections(self) -> set[str]:
        """All names that have options below them, such as ``training``."""
        return {name.rpartition(".")[0] for name in self.options if "." in name}

    def find(self, name: str) -> tuple[Option, bool | None] | None:
        """Return the option of a name with dashes or underscores.

        The second value is the value of a switch: True for ``x.name``, False for ``x.no_name``. None for options that
        are no switch.
        """
        name = name.replace("-", "_")
        if name in self.options:
            option = self.options[name]
            return option, (True if option.type == "bool" else None)
        section, dot, last = name.rpartition(".")
        switch = self.options.get(f"{section}{dot}{last.removeprefix('no_')}") if last.startswith("no_") else None
        return (switch, False) if switch is not None and switch.type == "bool" else None

    def closest(self, name: str) -> str | None:
        """Return the option that a wrong name probably means, or None."""
        name = name.replace("-", "_")
        last = name.rpartition(".")[2]
        same = [known for known in self.options if known.rpartition(".")[2] == last and not self.options[known].hidden]
        if len(same) > 1:
            same = difflib.get_close_matches(name, same, n=1, cutoff=0.0)
        close = same or difflib.get_close_matches(name, self.options, n=1, cutoff=0.75)
        if not close:
            of_last = {known.rpartition(".")[2]: known for known in self.options}
            close = [of_last[one] for one in difflib.get_close_matches(last, of_last, n=1, cutoff=0.8)]
        return close[0] if close else None


@functools.cache
def table() -> Table:
    """Read :data:`FILE`."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    options = {}
    for name, described in data["options"].items():
        choices, policies = (tuple(described.pop(key, ())) for key in ("choices", "policies"))
        options[name] = Option(name, choices=choices, policies=policies, **described)
    return Table(options, data["recipes"], data["defaults"])


def _converts(type_: type, text: str) -> bool:
    try:
        type_(text)
    except ValueError:
        return False
    return True
