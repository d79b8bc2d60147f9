"""How a training run ends: its exit codes, and the file that tells them to whoever started torchrun.

torchrun exits with 1 whatever its workers exit with, so the code also stands in ``<dump_folder>/exit_code`` when a run
has ended with one of these. A run that crashed or was killed leaves no such file.
"""

import os
from enum import IntEnum
from pathlib import Path

EXIT_CODE_FILE = "exit_code"
"""In the run's folder: the number of the exit code and a line break."""


class ExitCode(IntEnum):
    """Exit codes of ``python -m exact_titan.train``; a crash has Python's 1."""

    FINISHED = 0
    """All steps are done."""

    INPUT_ERROR = 2
    """An option, a file or a checkpoint is not what it must be: running it again changes nothing."""

    NOT_FINITE = 65
    """Loss or gradient is NaN or infinite: running it again ends there again (EX_DATAERR of sysexits.h)."""

    SAVED = 75
    """Stopped by a signal or the stop file, and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)."""


class Ended(SystemExit):
    """A training run ends early and in good order, on all ranks at once.

    A SystemExit, which torchrun's error files do not take for a crash.
    """

    code: ExitCode

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)


def write_exit_code(run: Path, code: int) -> None:
    """Put the code into the run's folder; whole or not at all."""
    partial = run / f".{EXIT_CODE_FILE}.{os.getpid()}"
    partial.write_text(f"{code:d}\n", encoding="utf-8")
    partial.replace(run / EXIT_CODE_FILE)


def remove_exit_code(run: Path) -> None:
    """Forget how the run ended before, at its next start."""
    (run / EXIT_CODE_FILE).unlink(missing_ok=True)
