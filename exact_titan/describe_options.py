"""``python -m exact_titan.describe_options``: write the description of all options of a run.

The description is ``exact_titan/launch/options.json``. ``--help`` and the checks of the arguments read the description,
because the config tree itself needs torch. Run this command after a change of an option, a default or a recipe. A test
compares the file with the config tree.
"""

import contextlib
import json
import logging
import re
import sys
import warnings
from dataclasses import fields, is_dataclass
from typing import Any

import tyro

from exact_titan import entry
from exact_titan.config import recipes, registry
from exact_titan.launch import options
from exact_titan.system.atomic_files import write_atomically
from exact_titan.titan import layout
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trainer import ExactTrainer

_HIDDEN = (
    "dataloader.dataset",
    "parallelism.spmd_backend",
    "parallelism.module_fqns_per_model_part",
    "parallelism.enable_sequence_parallel",
    "parallelism.context_parallel_load_balancer",
    "parallelism.context_parallel_ptrr_mask_key",
)
"""Options with one value here, in addition to the options of the parallelisms that preflight refuses."""

_TYPES = {"INT": "int", "FLOAT": "float", "FLOAT|INT": "float", "STR": "str", "A,B,C,...": "list", "1,2,3,...": "ints"}
"""Types by the parser's name for a value."""


def describe() -> dict[str, Any]:
    """Return the content of ``options.json``: recipes, options, and the defaults of every recipe."""
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, Any]] = {}
    configs = {name: recipe() for name, recipe in recipes().items()}
    for config in configs.values():
        config.compile.enable = False  # the default on a machine without a GPU
        for name, described in _options(config).items():
            if found.setdefault(name, described) != described:
                raise ValueError(f"option {name} differs between the recipes: extend options.json")
    logging.disable(logging.NOTSET)
    return {
        "recipes": {name: (recipe.__doc__ or "").partition("\n")[0] for name, recipe in recipes().items()},
        "options": found,
        "defaults": {name: {option: _default(config, option) for option in found} for name, config in configs.items()},
    }


def text() -> str:
    """Return :func:`describe` as JSON with one option per line."""
    content = describe()
    lines = ["{"]
    for part, entries in content.items():
        lines.append(f'"{part}": {{')
        rows = (
            [f'"{name}": {{\n{_rows(value)}\n}}' for name, value in entries.items()]
            if part == "defaults"
            else [_rows({name: value}) for name, value in entries.items()]
        )
        lines.append(",\n".join(rows))
        lines.append("}," if part != "defaults" else "}")
    return "\n".join([*lines, "}", ""])


def _rows(entries: dict[str, Any]) -> str:
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items())


def _options(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the options that tyro's parser of this config has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(ExactTrainer.Config, default=config, registry=registry())
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            policies = {name.partition(":")[2]: sub for name, sub in action.choices.items()}
            found[options.POLICY] = {
                "type": "choice",
                "help": "Activation checkpointing: the activations that the backward pass recomputes.",
                "choices": list(policies),
            }
            for policy, sub in policies.items():
                for inner in sub._actions:
                    if inner.dest != "help":
                        name, described = _option(inner)
                        described = found.setdefault(name, described | {"policies": []})
                        described["policies"].append(policy)
        elif action.dest != "help":
            name, described = _option(action)
            found[name] = described
    return found


def _option(action: Any) -> tuple[str, dict[str, Any]]:
    name = action.option_strings[0].removeprefix("--").replace("-", "_")
    described: dict[str, Any] = {"type": "", "help": _help(action.help)}
    metavar = (action.metavar or "").removeprefix("{None}|")
    if type(action).__name__ == "BooleanOptionalAction":
        described["type"] = "bool"
    elif action.nargs == "*":
        described["type"] = "words"
    elif action.choices:
        described |= {"type": "choice", "choices": list(action.choices)}
    else:
        described["type"] = _TYPES[metavar]
    if metavar != (action.metavar or ""):
        described["optional"] = True
    refused = (f"parallelism.{degree.removesuffix('_degree')}_" for degree in layout.REFUSED)
    if name in _HIDDEN or name.startswith(tuple(refused)):
        described["hidden"] = True
    return name, described


def _help(given: str | None) -> str:
    """Return the first paragraph of a help text as one line, without the default."""
    without = re.sub(r"\s*\((?:default|optional)[^()]*(?:\([^()]*\)[^()]*)*\)\s*$", "", given or "")
    return " ".join(without.partition("\n\n")[0].split())


def _default(config: Any, option: str) -> Any:
    """Return the default of an option as a value of JSON. None for an option of another policy than the default."""
    value = config
    if option == options.POLICY:
        return _policy(config)
    for name in option.split("."):
        value = getattr(value, name, None)
    if is_dataclass(value):
        raise ValueError(f"option {option} is a section with {len(fields(value))} options: extend options.json")
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return value
    return str(value)


def _policy(config: RunConfig) -> str:
    chosen = config.activation_checkpoint
    if chosen is None:
        return "none"
    # The classes are AttentionSavingAC, FullAC and MemoryBudgetAC.
    return {"AttentionSavingAC": "selective", "FullAC": "full", "MemoryBudgetAC": "memory-budget"}[
        type(chosen).__qualname__.partition(".")[0]
    ]


def main() -> None:
    """Write the description, and print its file."""
    write_atomically(options.FILE, text())
    print(options.FILE)


if __name__ == "__main__":
    sys.exit(entry.run("exact_titan.describe_options", main))
