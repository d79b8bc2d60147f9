"""Check every byte of a run's checkpoints: ``exact-titan verify RUN``."""

from collections.abc import Callable
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_verification import verify_checkpoint, verify_checkpoints
from exact_titan.runs.locations import CHECKPOINTS_FILE, DEFAULT_FOLDER, checkpoints_of, is_checkpoint
from exact_titan.runs.run_record import FILE_NAME as RUN_RECORD


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is the output folder of a run, or one checkpoint."""
    names = (RUN_RECORD, DEFAULT_FOLDER, CHECKPOINTS_FILE)
    return is_checkpoint(folder) or any((folder / name).exists() for name in names)


def verify_run(folder: Path, show: Callable[[str], None]) -> None:
    """Check the checkpoints of a run, or one checkpoint, against their manifests.

    Args:
        folder: the output folder of the run, or one checkpoint.
        show: gets one line for every file, directly after its check.

    Raises:
        InputError: naming the bad files and checkpoints, after the check of all files.
    """
    checked = verify_checkpoint(folder) if is_checkpoint(folder) else verify_checkpoints(checkpoints_of(folder))
    bad, good = [], 0
    for is_good, line in checked:
        show(f"ok   {line}" if is_good else f"BAD  {line}")
        if is_good:
            good += 1
        else:
            bad.append(line)
    if bad:
        raise InputError(f"{'; '.join(bad)}: copy these files again, or use another checkpoint")
    if not good:
        raise InputError(f"{folder} has no checkpoint to check: the run has not saved one yet")
    show(f"the checkpoints of {folder} are whole")
