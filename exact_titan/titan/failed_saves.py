"""Saves that the disk refuses: no room, no permission, a fault of the network disk.

A periodic save that the disk refuses is a warning. The run continues, and the next save is due as before. A run of
hours is worth more than one of its checkpoints, and somebody may make room. The last save of a run and the save after
a stop end the run with one line.
"""

from torch.distributed.checkpoint.api import CheckpointException

from exact_titan.errors import InputError
from exact_titan.system.file_errors import input_error


def disk_error(error: BaseException) -> str | None:
    """Return the cause of a failed save as one line. None: the disk is not the cause.

    PyTorch packs the errors of all ranks into one exception.
    """
    errors = [one for one, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    for one in errors:
        if isinstance(one, OSError) and (found := input_error(one)) is not None:
            return str(found)
    return None


def not_saved(step: int, saved_step: int, cause: str) -> InputError:
    """Return the error of a run that cannot save its last step."""
    return InputError(
        f"the checkpoint of step {step} cannot be saved: {cause}; the same command resumes from {_last(saved_step)}"
    )


def skipped(step: int, saved_step: int, cause: str) -> str:
    """Return the warning about a periodic save that the disk refuses."""
    return (
        f"The checkpoint of step {step} cannot be saved: {cause}. The run goes on to the next save. A resume starts "
        f"from {_last(saved_step)}"
    )


def _last(saved_step: int) -> str:
    return f"step {saved_step}" if saved_step else "the beginning: there is no checkpoint yet"
