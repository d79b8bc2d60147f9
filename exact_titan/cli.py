"""The command line ``exact-titan``: find, parse and run a command, and report a mistake as one line."""

import contextlib
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any

import tyro

from exact_titan import entry, evaluation_commands, study_commands, version
from exact_titan.commands import COMMANDS
from exact_titan.errors import InputError, did_you_mean
from exact_titan.launch import command, options
from exact_titan.system.terminal import unguarded

GROUPS = {"study": study_commands.COMMANDS, "eval": evaluation_commands.COMMANDS}
"""Commands of two words, such as ``exact-titan study run``."""

_UNNAMED = {"eval": "run"}
"""The command of a group whose second word may be left out: ``exact-titan eval FOLDER``."""

_TITLES = {
    "": "Long-context continued pretraining with EXACT.",
    "train": "Train a model on this machine, with one process per GPU.",
    "study": "Train paired runs, and ask whether their difference is real.",
    "eval": "Evaluate runs and Hugging Face folders: RULER, NoLiMa, an evidence probe and QA tasks.",
}
_EXAMPLES = {
    "": "exact-titan train SmolLM2-135M-2k --training.steps 20",
    "study": "exact-titan study run smollm2 --out outputs/smollm2-study",
    "eval": "exact-titan eval outputs/run-a outputs/run-b --out outputs/evaluation",
}
_PLAN_OPTIONS = ("--config", "--nproc", "--memory", "--mfu", "--peak-tflops")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code (:func:`exact_titan.entry.run`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return entry.run("exact-titan", lambda: _run(given))


def _run(given: list[str]) -> int:
    group = given[0] if given and given[0] in GROUPS else ""
    commands, rest = (GROUPS[group], given[1:]) if group else (COMMANDS, given)
    if group in _UNNAMED and rest and rest[0] not in commands and _is_place(rest[0]):
        rest = [_UNNAMED[group], *rest]
    if not rest or rest[0] in ("-h", "--help"):
        print(_overview(group))
        return 0
    if given[0] == "--version":
        print(f"exact_titan {version()}")
        return 0
    if given[0] == "train":
        return command.main(given[1:])
    if rest[0] not in commands:
        names = tuple(commands) if group else ("train", *COMMANDS, *GROUPS)
        name = f"{group} {rest[0]}".strip()
        raise InputError(
            f"there is no command {name!r}{did_you_mean(rest[0], names)}; the commands are "
            f"{', '.join(f'{group} {one}'.strip() for one in names)}"
        )
    _check_names(f"{group} {rest[0]}".strip(), commands[rest[0]], rest[1:])
    return _parse(group, commands, rest)() or 0


def _is_place(word: str) -> bool:
    """Whether the word names a file or a URL, or is an option, and is not a command."""
    return "/" in word or os.path.exists(word) or (word.startswith("--") and word != "--help")


def _overview(group: str) -> str:
    """Return the help of ``exact-titan`` itself, or of a group: one line per command."""
    lines = {} if group else {"train": _TITLES["train"]}
    lines |= {
        name: (function.__doc__ or "").partition("\n")[0] for name, function in (GROUPS.get(group) or COMMANDS).items()
    }
    lines |= {} if group else {name: _TITLES[name] for name in GROUPS}
    prefix = f"exact-titan {group}".strip()
    version_line = "" if group else " --version shows the version."
    return "\n".join(
        [
            f"usage: {prefix} COMMAND …",
            "",
            _TITLES[group],
            "",
            *(f"  {name:<8}  {line}" for name, line in lines.items()),
            "",
            f"`{prefix} COMMAND --help` shows the options of a command.{version_line}",
            f"Example: {_EXAMPLES[group]}",
        ]
    )


def _check_names(name: str, function: Callable, given: list[str]) -> None:
    """Refuse an option that the command does not have, with the closest name.

    Args:
        name: the words of the command.
        function: the command.
        given: the arguments after the words of the command.

    Raises:
        InputError: naming the option.
    """
    known = ["--help", *_flags(function)]
    for word in given:
        option = word.partition("=")[0]
        # The options of plan after its own options belong to the run.
        if word == "--" or (name == "plan" and ("." in option or options.table().find(option[2:]) is not None)):
            continue
        if option.startswith("--") and option.replace("_", "-") not in known:
            hint = did_you_mean(option, known) or f"; `exact-titan {name} --help` lists the options"
            raise InputError(f"{name}: there is no option {option}{hint}")


def _flags(function: Callable) -> Iterator[str]:
    """Yield the options of a command, with dashes."""
    for parameter in signature(function).parameters.values():
        if parameter.kind == parameter.KEYWORD_ONLY:
            if is_dataclass(parameter.default):
                yield from _fields(parameter.default, "")
            else:
                yield f"--{parameter.name.replace('_', '-')}"


def _fields(options: Any, prefix: str) -> Iterator[str]:
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            yield from _fields(value, f"{prefix}{one.name}.")
        else:
            yield f"--{prefix}{one.name.replace('_', '-')}"


def _parse(group: str, commands: Mapping[str, Callable], given: list[str]) -> Callable[[], int | None]:
    """Return the call that the arguments describe. A mistake in the arguments is one line.

    Raises:
        InputError: naming the option.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), unguarded():
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(function) for name, function in commands.items()},
                prog=f"exact-titan {group}".strip(),
                args=given if group else _run_options_last(given),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(f"{f'{group} {given[0]}'.strip()}: {_one_line(errors.getvalue())}") from None


def _deferred(function: Callable) -> Callable:
    @functools.wraps(function)
    def deferred(*args: object, **options: object) -> Callable:
        return functools.partial(function, *args, **options)

    return deferred


def _one_line(box: str) -> str:
    """Return the message in a box of tyro as one line, without the frame and the full help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    message = " ".join(" ".join(line for line in lines if line and set(line) != {"─"}).split())
    message = re.sub(r"^(Value error|Invalid choice|Parsing error|Required options)\s+", "", message)
    return re.sub(r"\s*(Argument helptext:|For full helptext,) .*$", "", message)


def _run_options_last(arguments: Sequence[str]) -> list[str]:
    """Move the run's options among the arguments of ``plan`` after ``--``. The parser passes them on unchanged."""
    if not arguments or arguments[0] != "plan":
        return list(arguments)
    plan_options, run_options = ["plan"], []
    rest = iter(arguments[1:])
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in ("-h", "--help"):
            plan_options.append(argument)
        elif name.replace("_", "-") in _PLAN_OPTIONS:
            plan_options += [argument] if value else [argument, *itertools.islice(rest, 1)]
        elif argument != "--":
            run_options.append(argument)
    return [*plan_options, "--", *run_options]


if __name__ == "__main__":
    sys.exit(main())
