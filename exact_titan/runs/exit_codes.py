"""The exit codes of a training run, and the file that holds the exit code.

torchrun exits with 1 for every nonzero exit code of its workers. A run therefore also writes its exit code to
``<dump_folder>/exit_code``. A run that crashed or was killed leaves no such file.
"""

import contextlib
import sys
import time
from enum import IntEnum
from pathlib import Path

from exact_titan.system.atomic_files import write_atomically

EXIT_CODE_FILE = "exit_code"
"""The file in the run's folder. Content: the number of the exit code and a line break."""

_TRIES = 5
_TRY_AGAIN_SECONDS = 1.0


class ExitCode(IntEnum):
    """Exit codes of ``python -m exact_titan.train``. After a crash the exit code is 1, as Python sets it."""

    FINISHED = 0
    """All steps are done."""

    INPUT_ERROR = 2
    """An option, a file or a checkpoint is wrong. The same command fails again."""

    NOT_FINITE = 65
    """The loss or the gradient is NaN or infinite. The same command ends at the same step again (EX_DATAERR of
    sysexits.h)."""

    SAVED = 75
    """A signal or the stop file stopped the run after a save. The same command resumes the run (EX_TEMPFAIL of
    sysexits.h)."""


class Ended(SystemExit):
    """A training run ends early on all ranks at the same time, and not because of a crash.

    The base class is SystemExit, because torchrun's error files do not record SystemExit as a crash.
    """

    code: ExitCode

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)


def write_exit_code(run: Path, code: int) -> None:
    """Write the exit code into the run's folder atomically.

    An error of the file system does not change the end of the run. The function tries again for some seconds, and then
    prints a warning.
    """
    file = run / EXIT_CODE_FILE
    for left in reversed(range(_TRIES)):
        try:
            return write_atomically(file, f"{code:d}\n")
        except OSError as error:
            why = error
        if left:
            time.sleep(_TRY_AGAIN_SECONDS)
    with contextlib.suppress(OSError):
        print(f"warning: {file} cannot be written ({why}): the exit code is {code:d}", file=sys.stderr, flush=True)


def remove_exit_code(run: Path) -> None:
    """Remove the exit code of the previous start. The next start of the run calls this function."""
    (run / EXIT_CODE_FILE).unlink(missing_ok=True)
