"""A study: its arms, seeds, starts, stages and outcomes, read from a STUDY.toml (docs/studies.md).

Every key of the file is checked here, except the options of the runs. The options have the keys of a run's TOML, and
the command that trains the study checks them (:mod:`exact_titan.study_commands`).
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from exact_titan.errors import InputError, did_you_mean
from exact_titan.study.toml_table import TomlTable, repeated_value
from exact_titan.system.toml_file import read_toml_file
from exact_titan.system.typed_values import WHOLE_RECORD, built, wrong_value

SELECTIONS = ("facts", "tail", "below_tail", "all", "context_gain")
"""The targets that an outcome measures."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = ("report",)


@dataclass(frozen=True)
class Outcome:
    """A number that the study compares between its arms.

    Attributes:
        name: name in the report.
        select: one of :data:`SELECTIONS`.
        min_distance, max_distance: for ``facts``: the tokens between a fact and its question, from ``min_distance`` to
            below ``max_distance``. None: no upper limit.
        piece: for ``context_gain``: the length of the pieces in tokens.
    """

    name: str
    select: str
    min_distance: int = 0
    max_distance: int | None = None
    piece: int | None = None


@dataclass(frozen=True)
class Stage:
    """A training stage. Every stage starts from the last weights of the stage before.

    Attributes:
        name: name of the stage's folder.
        shared: whether all arms and seeds share one run of the stage for each start.
        options: options of the stage's runs, as the tree of a run's TOML.
    """

    name: str
    shared: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: name in the report.
        baseline: the arm that all differences are from.
        arms: options of each arm by its name, as the tree of a run's TOML.
        seeds: values of ``dataloader.seed``, the order of the data.
        starts: values of ``debug.seed``. One shared start is trained for each value.
        stages: the stages in their order.
        options: options of all runs, as the tree of a run's TOML.
        primary: name of the outcome that decides. The study fixes the outcome before it trains.
        outcomes: all outcomes.
        nproc: processes of one run.
        parallel: runs at one time. None: the number that the machine allows.
    """

    name: str
    baseline: str
    arms: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    starts: tuple[int, ...]
    stages: tuple[Stage, ...]
    options: dict[str, Any]
    primary: str
    outcomes: tuple[Outcome, ...]
    nproc: int = 1
    parallel: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the study as JSON values. :meth:`of_json` reads the values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of_json(cls, values: Any) -> "Study":
        """Return the study of :meth:`as_json`.

        Raises:
            InputError: naming the value, without a file: if the values are not a study, if they do not fit together, or
                if a name cannot be the name of a folder.
        """
        if (wrong := wrong_value(values, cls, rules=WHOLE_RECORD)) is not None:
            raise InputError(wrong)
        study: Study = built(values, cls)
        _check(study, "study")
        return study

    def identity(self) -> dict[str, Any]:
        """Return the values that make the study: all but ``parallel``, because another number gives the same runs."""
        return {name: value for name, value in self.as_json().items() if name != "parallel"}

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`identity`, in hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def read_study(path: Path) -> Study:
    """Read a STUDY.toml.

    Raises:
        InputError: naming the file and the key.
    """
    table = TomlTable(read_toml_file(path), str(path))
    study = Study(
        name=table.text("name"),
        baseline=table.text("baseline"),
        arms=_arms(table),
        seeds=table.numbers("seeds", example="[0, 1, 2]"),
        starts=table.numbers("starts", default=(0,)),
        stages=_stages(table),
        options=table.options("options"),
        primary=table.text("primary"),
        outcomes=_outcomes(table),
        nproc=table.number("nproc", 1, least=1),
        parallel=table.number("parallel", None, least=1),
    )
    table.end()
    _check(study, str(path))
    return study


def _arms(table: TomlTable) -> dict[str, dict[str, Any]]:
    arms = table.options("arms")
    if len(arms) < 2:
        table.fail("arms has fewer than two arms: write one table [arms.NAME.SECTION] for each arm")
    for name, options in arms.items():
        if not isinstance(options, dict):
            table.wrong(f"arms.{name}", options, f"a table of options, [arms.{name}.SECTION]")
        for key in options:
            if key[:1].isdigit():
                table.fail(f'arms.{name}.{key} is no option: a name with a dot needs quotes, [arms."{name}.{key}"]')
    return arms


def _stages(table: TomlTable) -> tuple[Stage, ...]:
    stages = []
    for one in table.tables("stages"):
        shared = one.take("shared")
        if not isinstance(shared, bool | None):
            one.wrong("shared", shared, "true or false, without quotes")
        stages.append(Stage(one.text("name"), bool(shared), one.options("options")))
        one.end()
    return tuple(stages)


def _outcomes(table: TomlTable) -> tuple[Outcome, ...]:
    outcomes = []
    for one in table.tables("outcomes"):
        name, select = one.text("name"), one.text("select")
        if select not in SELECTIONS:
            one.wrong("select", select, f"one of {', '.join(SELECTIONS)}{did_you_mean(select, SELECTIONS)}")
        least, most = one.number("min_distance", None), one.number("max_distance", None, least=1)
        piece = one.number("piece", None, least=1)
        if select != "facts" and (least, most) != (None, None):
            one.fail("min_distance and max_distance belong to the selection facts: leave them out")
        if (select == "context_gain") != (piece is not None):
            one.fail("piece belongs to the selection context_gain, which needs it: the length of the pieces in tokens")
        if most is not None and most <= (least or 0):
            one.wrong("max_distance", most, f"more than min_distance ({least or 0})")
        outcomes.append(Outcome(name, select, least or 0, most, piece))
        one.end()
    return tuple(outcomes)


def _check(study: Study, where: str) -> None:
    """Refuse values that do not fit together."""

    def fail(message: str) -> NoReturn:
        raise InputError(f"{where}: {message}")

    stages = [stage.name for stage in study.stages]
    outcomes = [outcome.name for outcome in study.outcomes]
    for kind, names in {"stage": stages, "outcome": outcomes}.items():
        if repeated := repeated_value(names):
            fail(f"two {kind}s have the name {repeated!r}: give each {kind} its own name")
    for kind, folders in {"stage": stages, "arm": list(study.arms)}.items():
        for name in folders:
            if not _NAME.fullmatch(name) or (kind == "stage" and name in _RESERVED):
                fail(
                    f"the {kind} {name!r} cannot name a folder of the study: use letters, digits, '.', '_', '+' and "
                    f"'-', and not {' or '.join(_RESERVED)}"
                )
    if study.baseline not in study.arms:
        hint = did_you_mean(study.baseline, study.arms) or f"; the arms are {', '.join(study.arms)}"
        fail(f"baseline is {study.baseline!r}: there is no such arm{hint}")
    if study.primary not in outcomes:
        hint = did_you_mean(study.primary, outcomes) or f"; the outcomes are {', '.join(outcomes)}"
        fail(f"primary is {study.primary!r}: there is no such outcome{hint}")
    for before, stage in zip(study.stages, study.stages[1:], strict=False):
        if stage.shared and not before.shared:
            fail(
                f"the stage {stage.name} is shared, but the stage {before.name} before it is not: the runs of "
                f"{before.name} have different weights, so put the shared stages first"
            )
    if study.stages[-1].shared:
        fail(f"the last stage, {stages[-1]}, is shared: the arms need a stage of their own")
    if len(study.starts) > 1 and not study.stages[0].shared:
        fail(f"starts has {len(study.starts)} values: several starts need a first stage with shared = true")
