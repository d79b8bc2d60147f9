"""One call of ``exact-titan study run``: check everything, train what is left, write the proof."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.runs.exit_codes import ExitCode
from exact_titan.runs.run_record import RunRecord, options_of, read_record
from exact_titan.study import pairing, runner
from exact_titan.study.folder import check_folder, locked
from exact_titan.study.measurable import check_outcomes
from exact_titan.study.plan import Planned, plan, representatives
from exact_titan.study.results import is_finished, write_study_file
from exact_titan.study.spec import Study

Complete = Callable[[list[Planned]], list[RunRecord]]
"""Completes the configs of runs, and returns the record of each run (``exact_titan.study_configs``)."""

Machine = Callable[[list[Planned]], tuple[runner.Start, int]]
"""Returns the function that starts a run, and the number of runs at one time, for the runs that are left."""


def run(study: Study, folder: Path, *, where: str, complete: Complete, machine: Machine) -> int:
    """Train a study, or resume its training.

    1. Check the folder, and the completed config of every stage and arm.
    2. Refuse arms that are not paired.
    3. Train the runs that are not finished.
    4. Compare the ``run.json`` of the finished runs, and write the proof.

    Args:
        study: the study.
        folder: folder of the study.
        where: the file of the study, for messages.
        complete: completes the configs of runs.
        machine: starts runs.

    Returns:
        The exit code: that of :func:`exact_titan.study.runner.train`, or 2 if finished runs are not paired.

    Raises:
        InputError: before any training, if the study, the folder or a config is wrong.
    """
    planned = plan(study, folder, where=where)
    check_folder(study, folder)
    code: int = ExitCode.FINISHED
    if not all(is_finished(one.run) for one in planned):
        chosen = representatives(planned)
        records = dict(zip(chosen, complete(list(chosen.values())), strict=True))
        pairing.check_arms(records, study.baseline, where=where)
        first = next(stage.name for stage in study.stages if not stage.shared)
        pairing.check_first_weights(records, study.baseline, first, where=where)
        check_outcomes(study, records[study.stages[-1].name, study.baseline], where=where)
        _check_begun(planned, records)
        with locked(folder):
            write_study_file(study, folder)
            start, parallel = machine(planned)
            code = runner.train(planned, start, parallel=parallel)
            faults = _prove(study, folder)
    else:
        print(f"all {len(planned)} runs are finished: nothing to train")
        faults = _prove(study, folder)
    if code == ExitCode.FINISHED and faults:
        raise InputError(f"{folder}: the runs are not paired: see the faults above, and train in a new folder")
    return code


def _prove(study: Study, folder: Path) -> bool:
    """Write and print the proof about the finished runs. Return whether a pair is not paired."""
    from exact_titan.study.proof import proof_lines, prove, write_proof  # this import loads torch

    proof: dict[str, Any] = prove(study, folder)
    write_proof(proof, folder)
    if proof["runs"]:
        print("\n".join(proof_lines(proof)), flush=True)
    return bool(proof["faults"])


def _check_begun(planned: list[Planned], records: dict[tuple[str, str], RunRecord]) -> None:
    """Refuse to resume a study whose data or options are not those of its runs any more."""
    for one in planned:
        record = read_record(one.run.folder) if one.run.folder.is_dir() else None
        if record is None:
            continue
        now = records[one.run.stage, one.run.arm]
        own = {"dataloader.seed": one.options["dataloader.seed"], "debug.seed": one.options["debug.seed"]}
        was = replace(record, config=_with(record.config, {name: options_of(now.config)[name] for name in own}))
        for fault in pairing.faults(now, was):
            raise InputError(
                f"{one.run.folder} was trained with other options or data: {fault.replace('in the baseline', 'now')}: "
                f"put the old files or version back, or train in a new folder"
            )


def _with(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return a config tree with other values of options of the form SECTION.NAME."""
    changed = dict(config)
    for name, value in options.items():
        section, _, option = name.partition(".")
        changed[section] = {**changed[section], option: value}
    return changed
