"""The errors of PyTorch about a checkpoint, sorted by their cause: the content of the files, or the machine.

PyTorch packs every error of a load into one exception, also Ctrl-C and a lack of memory.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_manifest import NOT_THERE
from exact_titan.runs.checkpoint_verdict import cannot_be_read
from exact_titan.runs.safe_pickle import MetadataError
from exact_titan.system.file_errors import why

OTHER_CHECKPOINT = "copy it again, or resume from an earlier checkpoint with --checkpoint.load_step"
"""The way out, in messages about a checkpoint with wrong content."""

_SHORT = ("allocate memory", "bad_alloc", "out of memory", "start new thread")
"""Texts of PyTorch's and Python's RuntimeErrors about a lack of memory."""


@contextmanager
def reading_checkpoint(checkpoint: Path, remedy: str = OTHER_CHECKPOINT) -> Iterator[None]:
    """Turn PyTorch's errors about checkpoint files into one :class:`InputError`.

    Args:
        checkpoint: the folder of the checkpoint, for the message.
        remedy: the way out if the content is wrong, for the message.

    Raises:
        InputError: if the checkpoint cannot be read. The message names the checkpoint and says whether the content,
            the system or the memory is the cause.
        KeyboardInterrupt: after Ctrl-C.
    """
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception):
                raise cause from None
        raise read_error(checkpoint, causes[0], remedy) from error
    except (MetadataError, OSError, MemoryError) as error:
        raise read_error(checkpoint, error, remedy) from error


def read_error(path: Path, cause: BaseException, remedy: str = OTHER_CHECKPOINT) -> InputError:
    """Return the :class:`InputError` for an error that occurred while ``path`` was read."""
    text = " ".join(str(cause).split())
    if _is_short_of_memory(cause, text):
        return InputError(f"there is too little memory to read {path} ({text or 'MemoryError'}): free memory")
    if isinstance(cause, OSError) and cause.errno not in (None, *NOT_THERE):
        return cannot_be_read(path, why(cause))
    return InputError(f"{path} cannot be read ({text:.150}): {remedy}")


def _is_short_of_memory(cause: BaseException, text: str) -> bool:
    if isinstance(cause, OSError):
        return cause.errno == errno.ENOMEM
    return isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and any(one in text for one in _SHORT))
