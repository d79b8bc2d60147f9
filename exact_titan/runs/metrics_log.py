"""``<dump_folder>/metrics.jsonl``: one JSON object a log step and one a validation, in the order of the steps.

A run with an exponential moving average of its weights writes two objects a validation: ``last`` and ``ema``.

- Rank 0 appends a line, and syncs the line to the disk, before the run saves a checkpoint of the step. A checkpoint of
  step k therefore means that all records up to step k are in the file. While a full disk refuses the records, they stay
  in memory, and the next append writes them. Without the records, no checkpoint is saved.
- A run that starts after step k (:meth:`MetricsLog.begin`) moves the records of later steps out of the file. The run
  writes these records again. The file therefore has no gap and no step twice. A new run in the folder of another run
  starts after step 0, and moves all records.
- The moved records are at the end of ``metrics.replaced.jsonl``. Nothing reads this file. The file keeps the curves of
  an attempt that diverged, after a resume from an earlier checkpoint.
- A number that is not finite is one of the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, because JSON has no
  such numbers. ``float()`` of Python and ``Number()`` of JavaScript read these strings. ``null`` means that there is no
  value, as for a bucket without targets.
"""

import contextlib
import json
import math
import os
from io import FileIO
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.runs.records import Record, Weights, as_json, wrong_in
from exact_titan.system.bounded_files import open_regular
from exact_titan.system.file_errors import naming
from exact_titan.system.json_files import parse_json

FILE_NAME = "metrics.jsonl"
REPLACED = "metrics.replaced.jsonl"


class MetricsLog:
    """Appends records to ``metrics.jsonl``.

    Args:
        folder: output folder of the run. :meth:`begin` creates the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._replaced = folder / FILE_NAME, folder / REPLACED
        self._out: FileIO | None = None
        self._size = 0
        self._waiting: list[bytes] = []

    def begin(self, step: int, *, validated: bool = True) -> str | None:
        """Open the file for a run whose next step is ``step + 1``. Move the records of later steps out of the file.

        The end of a line that a killed run has not finished is not a record, and is moved as well.

        Args:
            step: the step of the loaded checkpoint. 0: a new run.
            validated: whether the validation of ``step`` has finished. Otherwise the run repeats this validation.

        Returns:
            A sentence for the log about the moved records. None if no record is moved.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        kept: list[bytes] = []
        moved: list[bytes] = []
        for line in _lines(self._file):
            (kept if _stays(line, step, validated) else moved).append(line)
        if moved:
            with self._replaced.open("ab") as out:
                out.write(b"".join(line.rstrip(b"\n") + b"\n" for line in moved))
            # A kill between the two writes leaves the moved records in both files. The next start moves them again.
            partial = self._file.with_name(f".{FILE_NAME}")
            with partial.open("wb") as out:
                out.write(b"".join(kept))
                out.flush()
                os.fsync(out.fileno())
            partial.replace(self._file)
        self._out = self._file.open("ab", buffering=0)
        self._size = self._out.tell()
        if not moved:
            return None
        after = f"the records after step {step}" if step else "the records of an earlier run in this folder"
        return f"{self._file}: {after} ({len(moved)} lines) are now in {self._replaced}"

    def append(self, record: Record) -> None:
        """Append one record. The record is on the disk when the method returns.

        Raises:
            OSError: if the record cannot be written. The record stays in memory, and the next call writes the record.
        """
        line = json.dumps(_finite(as_json(record)), separators=(",", ":"), allow_nan=False)
        self._waiting.append(line.encode() + b"\n")
        self._write()

    def flush(self) -> None:
        """Write the records in memory. A run calls this method before it saves a checkpoint.

        Raises:
            OSError: if records cannot be written.
        """
        if self._waiting:
            self._write()

    def close(self) -> None:
        """Write the records in memory, and close the file.

        Raises:
            OSError: if records cannot be written.
        """
        if self._out is None:
            return
        try:
            self.flush()
        finally:
            self._out.close()

    def _write(self) -> None:
        assert self._out is not None, "begin() opens the file"
        left = memoryview(b"".join(self._waiting))
        try:
            with naming(self._file):
                while left:
                    left = left[self._out.write(left) :]
                os.fsync(self._out.fileno())
        except OSError:
            # A part of a line would damage the file.
            with contextlib.suppress(OSError):
                self._out.truncate(self._size)
            raise
        self._size += sum(map(len, self._waiting))
        self._waiting.clear()


def read_records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Read the records of a run.

    Args:
        run: output folder of the run. The run may still write.
        kind: ``train`` or ``validation``.

    Returns:
        The JSON objects in the order of the steps. Numbers that are not finite are floats again.

    Raises:
        InputError: if the folder or the file is missing, or if a line is not a record.
    """
    file = run / FILE_NAME
    if not run.is_dir():
        raise InputError(f"{run}: no such folder")
    if not file.is_file():
        raise InputError(
            f"{run} has no {FILE_NAME}: the folder is not the output folder of a run, or the run is from an older "
            f"version of exact_titan; look at an old run with `tensorboard --logdir {run}`, or train it again"
        )
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(file), start=1):
        record = _record(line)
        if record is None:
            if line.endswith(b"\n"):
                raise InputError(f"{file}, line {number} is not a record: copy the file again, or correct the line")
            continue  # the run is writing this line
        if record["kind"] == kind:
            where = f"{file}, line {number}"
            if (wrong := wrong_in(record := _numbers(record))) is not None:
                raise InputError(f"{where}: {wrong}: copy the file again, or correct the line")
            records.append(_Table(where, record))
    return records


def read_validations(run: Path, weights: Weights = "last") -> list[dict[str, Any]]:
    """Read the validation records of one set of weights. Older records name no weights: the last weights.

    The errors are those of :func:`read_records`.
    """
    return [one for one in read_records(run, "validation") if one.get("weights", "last") == weights]


def _lines(file: Path) -> list[bytes]:
    try:
        with open_regular(file) as opened:
            return opened.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(f"{file} has no records ({error}): restore the file from a copy") from None


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None if the line is not a complete record."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    complete = line.endswith(b"\n") and isinstance(record, dict)
    return record if complete and isinstance(record.get("step"), int) and "kind" in record else None


def _stays(line: bytes, step: int, validated: bool) -> bool:
    record = _record(line)
    if record is None:
        return False
    return record["step"] < step or (record["step"] == step and (validated or record["kind"] != "validation"))


class _Table(dict[str, Any]):
    """An object of a record. A missing key is a mistake in the file, and not in the program."""

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        super().__init__((key, _Table(where, one) if isinstance(one, dict) else one) for key, one in values.items())
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self._where} has no value {key!r}: copy the file again, or correct the line")


def _finite(value: Any) -> Any:
    """Return a JSON value with strings for the numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return value


def _numbers(value: Any) -> Any:
    """Return the value of :func:`_finite` again."""
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    return value
