"""The verdict about a folder of a checkpoint: whether a run may load the folder, and why not."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_manifest import CannotRead, why_incomplete


class Kind(Enum):
    """The kinds of verdicts."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    UNREADABLE = "unreadable"
    """The system does not let this process read a file. The file says nothing about the checkpoint."""
    MISNAMED = "misnamed"
    """The folder may be a checkpoint, but its name is not ``step-N``. A copy program or a user has given the name."""


@dataclass(frozen=True)
class Verdict:
    """The verdict about a folder.

    Attributes:
        folder: the folder.
        kind: the kind.
        reason: the missing or wrong file, or the file and the cause of the system. Empty: complete or misnamed.
    """

    folder: Path
    kind: Kind
    reason: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Verdict":
        """Return the verdict about a folder with the name of a checkpoint."""
        try:
            reason = why_incomplete(folder)
        except CannotRead as error:
            return cls(folder, Kind.UNREADABLE, str(error))
        return cls(folder, Kind.COMPLETE) if reason is None else cls(folder, Kind.INCOMPLETE, reason)

    def line(self, *, skipped: bool) -> str:
        """Return one line about a folder that is not a complete checkpoint.

        Args:
            skipped: whether a search skips the folder. Otherwise a check reports the folder.
        """
        if self.kind == Kind.UNREADABLE:
            return f"{self.folder} cannot be read: {self.reason}"
        if self.kind == Kind.MISNAMED:
            return f"{self.folder} is {'skipped' if skipped else 'not checked'}: the name of a checkpoint is step-N"
        return f"{self.folder} is not complete{' and is skipped' if skipped else ''}: {self.reason}"

    def error(self, other: str = "") -> InputError:
        """Return the error for a folder of which a command needs the checkpoint.

        Args:
            other: another way out for a checkpoint that cannot be read, with its comma.
        """
        if self.kind == Kind.UNREADABLE:
            return cannot_be_read(self.folder, self.reason, other)
        return InputError(f"{self.folder} is not a complete checkpoint: {self.reason}")


def cannot_be_read(checkpoint: Path, cause: str, other: str = "") -> InputError:
    """Return the error for a checkpoint that the system does not let this process read."""
    return InputError(
        f"{checkpoint} cannot be read ({cause}): repeat the command when this user can read the file{other}"
    )
