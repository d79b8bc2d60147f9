"""``proof.json``: the evidence that the finished runs of a study are paired.

The file has the hash of the start weights of every start, the windows of every step, the difference of every arm from
the baseline, and the versions of the code that trained each run. ``faults`` lists every pair of runs that is not
paired. ``notes`` lists differences of versions and ranks, which may change the rounding.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord, read_record
from exact_titan.runs.weights_digest import weights_digest
from exact_titan.study import pairing
from exact_titan.study.results import ArmRun, is_finished, stage_runs
from exact_titan.study.spec import Study
from exact_titan.study.windows import StepWindows, step_windows
from exact_titan.system.atomic_files import write_atomically

FILE_NAME = "proof.json"
FORMAT = 1


def prove(study: Study, folder: Path) -> dict[str, Any]:
    """Return the proof about the finished runs as JSON values.

    Raises:
        InputError: if a dataset has changed since its runs were trained, or if a ``run.json`` is damaged.
    """
    runs = [run for number in range(len(study.stages)) for run in stage_runs(study, folder, number) if is_finished(run)]
    records = {run: record for run in runs if (record := read_record(run.folder)) is not None}
    proof: dict[str, Any] = {
        "format": FORMAT,
        "study": study.digest(),
        "faults": list(_faults(study, records)),
        "notes": list(_notes(records)),
        "differences": _differences(study, records),
        "starts": list(_starts(study, records)),
        "windows": list(_windows(study, records)),
        "runs": [_described(run, record) for run, record in records.items()],
    }
    return proof


def write_proof(proof: dict[str, Any], folder: Path) -> None:
    """Write ``proof.json`` atomically."""
    write_atomically(folder / FILE_NAME, json.dumps(proof, indent=1, default=str) + "\n")


def proof_lines(proof: dict[str, Any]) -> Iterator[str]:
    """Yield the proof as lines for a reader."""
    verdict = "not paired" if proof["faults"] else "paired"
    yield f"{verdict}: {_runs(len(proof['runs']))} finished"
    for start in proof["starts"]:
        yield f"  start {start['start']}: {_runs(start['runs'])} of {start['stage']} from {_start_text(start)}"
    for one in proof["windows"]:
        steps = f"{one['steps']} steps of {one['windows_per_step']} windows"
        yield f"  {one['name']}: {_runs(one['runs'])} on the same {steps}, sha256 {one['sha256'][:12]}"
    for stage, arms in proof["differences"].items():
        for arm, options in arms.items():
            text = ", ".join(f"{name} {one} -> {two}" for name, (one, two) in options.items())
            yield f"  {stage}, arm {arm}: {text or 'no difference'}"
    yield from (f"  note: {note}" for note in proof["notes"])
    yield from (f"  FAULT: {fault}" for fault in proof["faults"])


def _runs(number: int) -> str:
    return f"{number} run{'s' if number != 1 else ''}"


def _start_text(start: dict[str, Any]) -> str:
    if start["sha256"] is None:
        return f"weights of debug.seed {start['start']}"
    hashed = "of all weights" if start["whole"] else "of samples of the files"
    return f"{start['path']}, sha256 {start['sha256'][:12]} {hashed}"


def _first_arm_stage(study: Study) -> str:
    return next(stage.name for stage in study.stages if not stage.shared)


def _pairs(study: Study, records: dict[ArmRun, RunRecord]) -> Iterator[tuple[ArmRun, ArmRun]]:
    """Yield the run of the baseline and the run of an arm, for every stage, start and seed."""
    base = {(run.stage, run.start, run.seed): run for run in records if run.arm == study.baseline}
    for run in records:
        if run.arm and run.arm != study.baseline and (run.stage, run.start, run.seed) in base:
            yield base[run.stage, run.start, run.seed], run


def _faults(study: Study, records: dict[ArmRun, RunRecord]) -> Iterator[str]:
    first = _first_arm_stage(study)
    for base, run in _pairs(study, records):
        for fault in pairing.faults(records[base], records[run]):
            yield f"{run}: {fault}"
        if run.stage == first and not pairing.same_weights(records[base], records[run]):
            yield f"{run}: the start weights are not the start weights of {base}"
        if records[base].starts[-1].ranks != records[run].starts[-1].ranks:
            yield f"{run}: {records[run].starts[-1].ranks} ranks, but {records[base].starts[-1].ranks} in the baseline"


def _notes(records: dict[ArmRun, RunRecord]) -> Iterator[str]:
    """Yield a line for every value of the code or the machine that is not the same in all starts of all runs."""
    values: dict[str, dict[str, list[ArmRun]]] = {}
    for run, record in records.items():
        for start in record.starts:
            named = {"exact_titan": start.version, "commit": start.commit, "ranks": start.ranks, **start.software}
            for name, value in named.items():
                values.setdefault(name, {}).setdefault(str(value), []).append(run)
    for name, found in values.items():
        if len(found) > 1:
            yield f"{name} differs: " + ", ".join(f"{value} ({_count(runs)})" for value, runs in found.items())


def _count(runs: Iterable[ArmRun]) -> str:
    unique = list(dict.fromkeys(runs))
    return _runs(len(unique)) if len(unique) > 1 else str(unique[0].folder)


def _differences(study: Study, records: dict[ArmRun, RunRecord]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for base, run in _pairs(study, records):
        found.setdefault(run.stage, {}).setdefault(run.arm, pairing.differences(records[base], records[run]))
    return found


def _starts(study: Study, records: dict[ArmRun, RunRecord]) -> Iterator[dict[str, Any]]:
    """Yield the first weights of the first stage with arms, for every start.

    In a later stage every run starts from the last weights of its own arm and seed.
    """
    stage = _first_arm_stage(study)
    for start in study.starts:
        runs = [run for run in records if run.stage == stage and run.start == start]
        if runs:
            weights = records[runs[0]].weights
            yield {"start": start, "stage": stage, "runs": len(runs), **weights, **_hash(weights)}


def _hash(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the hash of the start weights, and whether it covers all weights."""
    path = Path(weights["path"]) if weights.get("path") else None
    whole = weights_digest(path) if path is not None and path.is_dir() else None
    return {"sha256": whole or weights.get("digest"), "whole": whole is not None}


def _windows(study: Study, records: dict[ArmRun, RunRecord]) -> Iterator[dict[str, Any]]:
    for stage in study.stages:
        for start in study.starts:
            for seed in (None,) if stage.shared else study.seeds:
                runs = [run for run in records if (run.stage, run.start, run.seed) == (stage.name, start, seed)]
                if runs:
                    order = f", seed {seed}" if seed is not None else ""
                    name = f"{stage.name}, start {start}{order}"
                    yield {"name": name, "runs": len(runs), **dataclasses.asdict(_same_windows(runs, records))}


def _same_windows(runs: list[ArmRun], records: dict[ArmRun, RunRecord]) -> StepWindows:
    """Return the windows of runs that are paired. A pair with another order is a fault, and is found before."""
    try:
        return step_windows(records[runs[0]])
    except InputError as error:
        raise InputError(f"{runs[0].folder}: the windows cannot be computed again: {error}") from None


def _described(run: ArmRun, record: RunRecord) -> dict[str, Any]:
    return {
        "stage": run.stage,
        "arm": run.arm,
        "start": run.start,
        "seed": run.seed,
        "folder": str(run.folder),
        "data": record.data.get("fingerprint"),
        "validation": (record.validation or {}).get("fingerprint"),
        "first_weights": record.weights,
        "starts": [dataclasses.asdict(start) for start in record.starts],
    }
