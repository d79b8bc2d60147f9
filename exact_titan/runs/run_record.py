"""``run.json``: the identity of a run. Which code, options, data, first weights, model and ranks made the run.

Rank 0 writes ``<dump_folder>/run.json`` at every start. Every checkpoint has a copy. A resume compares its options with
the copy of its checkpoint. ``compare`` and studies read the file in the run's folder.
"""

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import exact_titan
from exact_titan.errors import InputError
from exact_titan.runs.record_types import RecordValues, missing_to_resume
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.json_files import read_json
from exact_titan.system.typed_values import WHOLE_RECORD, parse_typed, wrong_value

FILE_NAME = "run.json"
FORMAT = 1

_RESTORE = "restore the file from a copy"
_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        time: UTC time, ISO 8601.
        resumed_from: step of the checkpoint that the start has loaded. 0: a new run.
        version: version of exact_titan.
        commit: git commit of the code, with ``+changes`` if files differ from the commit. None outside a git checkout.
        software: versions of python, torch and torchtitan.
        ranks: number of processes.
        hosts: number of machines.
        replicas: ``parallelism.data_parallel_replicate_degree``.
        shards: number of ranks over which the states are divided.
    """

    time: str
    resumed_from: int
    version: str
    commit: str | None
    software: dict[str, str]
    ranks: int
    hosts: int
    replicas: int
    shards: int


@dataclass(frozen=True)
class RunRecord:
    """The identity of a run.

    Attributes:
        config: all options of the last start, as torchtitan writes a config down.
        data: the training data: ``fingerprint`` of the mixture, ``split``, ``window``, ``order_version``
            (:mod:`exact_titan.sampling.order`; older records lack the key: version 1), and
            ``datasets`` with ``path``, ``fingerprint``, ``windows`` and ``weight`` (None: a single dataset without a
            weight).
        validation: the validation data in the same form. None: no validation.
        loss_data: fingerprint of the datasets whose counts give the weights of the loss.
        weights: the first weights of the run: ``kind`` (``scratch``, ``hugging_face`` or ``run``), ``path``, ``step``
            (of a run's checkpoint), and ``digest`` (:func:`sampled_digest`). The values of a model from scratch follow
            from ``debug.seed``.
        model: the architecture, as a config.json of transformers.
        starts: all starts of the run, the last start last.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    validation: dict[str, Any] | None
    loss_data: str
    weights: dict[str, Any]
    model: dict[str, Any]
    starts: list[Start] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``folder/run.json`` atomically."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, default=str)
        write_atomically(folder / FILE_NAME, text + "\n")

    def check_resumable(self, file: Path) -> None:
        """Refuse a record that lacks a value for a resume.

        Args:
            file: the file of the record, for the message.

        Raises:
            InputError: naming the file and the value.
        """
        if (missing := missing_to_resume(dataclasses.asdict(self))) is not None:
            raise InputError(f"{file}: key {missing!r} is missing: {_RESTORE}")


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a start continues.

    Attributes:
        checkpoint: folder of the complete checkpoint.
        step: step of the checkpoint.
        record: record of the checkpoint. None: the checkpoint is from an older version.
        changes: a line for every difference from the checkpoint that applies from the next step on.
        model_changed: whether the start trains another model than the checkpoint, apart from shapes.
    """

    checkpoint: Path
    step: int
    record: RunRecord | None
    changes: tuple[str, ...] = ()
    model_changed: bool = False


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run or of a checkpoint.

    Args:
        folder: output folder of the run, or folder of a checkpoint.

    Returns:
        None if the folder has no ``run.json``: the run is from an older version of exact_titan.

    Raises:
        InputError: if the file is not a record.
    """
    file = folder / FILE_NAME
    try:
        fields = read_json(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}: {_RESTORE}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise InputError(f"{file} is not a record of format {FORMAT}: another version of exact_titan wrote the file")
    if (wrong := wrong_value(fields, RecordValues)) is not None:
        raise InputError(f"{file}: {wrong}: {_RESTORE}")
    record: RunRecord = parse_typed(RunRecord, fields, str(file), way_out=_RESTORE, rules=WHOLE_RECORD)
    return record


def order_version(data: dict[str, Any] | None) -> int:
    """Return the version of the order of the windows from the ``data`` or the ``validation`` of a record.

    A record of an older version lacks the version: 1.
    """
    return (data or {}).get("order_version", 1)


def options_of(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config tree by option, such as ``optimizer.lr``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= options_of(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def sampled_digest(files: Iterable[Path]) -> str:
    """Return the identity of large weight files without reading all of them.

    The digest covers the name and the size of every file, and 64 evenly spaced blocks of 64 KiB of each file, with the
    first and the last block. Two trainings of one model differ in every block with a trained weight. A change of a few
    values between the blocks is not found.

    Returns:
        A SHA-256, in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        last = max(0, size - _SAMPLE_BYTES)
        with file.open("rb") as data:
            for offset in sorted({last * k // (_SAMPLES - 1) for k in range(_SAMPLES)}):
                data.seek(offset)
                digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def code_commit() -> str | None:
    """Return the git commit of this package's checkout, with ``+changes`` if files differ. None outside a checkout."""
    package = Path(exact_titan.__file__).parent
    try:
        # A package that was installed into another project's checkout is not part of that project.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(package, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
