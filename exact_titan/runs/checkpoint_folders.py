"""The folders of a run's checkpoints: ``step-N`` for a saved checkpoint, and hidden names for unfinished work.

1. A save writes into ``.unfinished-step-N``. The manifest completes the checkpoint.
2. :func:`publish` renames the folder to ``step-N``. An older folder of that name gets a name that starts with
   ``.removed-``.
3. The run deletes folders whose names start with ``.removed-``.

A kill between steps 1 and 2 leaves a complete checkpoint under its hidden name. :func:`find_checkpoints` finds
the checkpoint. Of several complete checkpoints of a step, the checkpoint that was completed last counts.

A folder ``step-N`` that is not complete is therefore not the rest of a save of this version. Such a folder is an
unfinished copy, or an older version has written the folder. Its data may be whole.
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_manifest import MANIFEST, NOT_THERE
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.checkpoint_verdict import Kind, Verdict
from exact_titan.system.file_errors import why

REMOVED = ".removed-"
SET_ASIDE = "set-aside-"
_UNFINISHED = ".unfinished-"
_STEP = re.compile(r"(step-(0|[1-9][0-9]*))(-[0-9]+)?")
_LIKE_A_STEP = re.compile(r"step\W*_?[0-9]", re.IGNORECASE)
_SHOWN = 3


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, in ascending order of the step.

    Attributes:
        folder: the folder.
        complete: the folder of every complete checkpoint, by step.
        refused: the verdict about every other folder that is or may be a checkpoint.
    """

    folder: Path
    complete: dict[int, Path]
    refused: tuple[Verdict, ...]

    def of_kind(self, kind: Kind) -> list[Verdict]:
        """Return the refused folders of a kind."""
        return [one for one in self.refused if one.kind == kind]

    def of_folder(self, checkpoint: Path) -> Verdict | None:
        """Return the verdict about a refused folder. None: the folder is complete, or there is no such folder."""
        return next((one for one in self.refused if one.folder == checkpoint), None)

    @property
    def has_steps(self) -> bool:
        """Whether a folder has the name of a checkpoint."""
        return bool(self.complete) or any(one.kind != Kind.MISNAMED for one in self.refused)

    def last(self, *, way_out: str = "copy these checkpoints again") -> int | None:
        """Return the step of the last complete checkpoint. None if there is no checkpoint at all.

        Args:
            way_out: the way out if no checkpoint is complete, for the message.

        Raises:
            InputError: if a later checkpoint cannot be read, if there are checkpoints and none is complete, or if the
                folder has only checkpoints under other names.
        """
        last = max(self.complete, default=None)
        for one in reversed(self.of_kind(Kind.UNREADABLE)):
            if last is None or step_of(one.folder) > last:
                other = "" if last is None else f", or choose the earlier checkpoint of step {last} by its step"
                raise one.error(other)
        if last is not None:
            return last
        if latest := self.of_kind(Kind.INCOMPLETE)[::-1]:
            reasons = "; ".join(f"{one.folder.name}: {one.reason}" for one in latest[:_SHOWN])
            more = f"; and {len(latest) - _SHOWN} more" if len(latest) > _SHOWN else ""
            raise InputError(f"{self.folder} has checkpoints, but none is complete ({reasons}{more}): {way_out}")
        if others := self.of_kind(Kind.MISNAMED):
            names = ", ".join(one.folder.name for one in others[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")
            raise InputError(
                f"{self.folder} has no step-N, but folders that may be checkpoints under another name ({names}): "
                f"rename them to step-N, or {way_out}"
            )
        return None

    def of_step(self, step: int) -> Path:
        """Return the complete checkpoint of a step.

        Raises:
            InputError: if the checkpoint does not exist, is not complete, or cannot be read.
        """
        if step in self.complete:
            return self.complete[step]
        for one in self.refused:
            if one.kind != Kind.MISNAMED and step_of(one.folder) == step:
                raise one.error()
        steps = ", ".join(map(str, self.complete)) or "none"
        raise InputError(f"{self.folder} has no complete checkpoint of step {step}: there are {steps}")


def find_checkpoints(folder: Path) -> Checkpoints:
    """Find the checkpoints in the checkpoint folder of a run. A folder that does not exist has none.

    Raises:
        InputError: if the folder cannot be listed.
    """
    complete: dict[int, Path] = {}
    refused = []
    for step, checkpoint in sorted(_step_folders(folder)):
        verdict = Verdict.of(checkpoint)
        if verdict.kind == Kind.COMPLETE:
            complete[step] = max(complete.get(step, checkpoint), checkpoint, key=_completed)
        elif verdict.kind == Kind.UNREADABLE or not _is_hidden(checkpoint):
            refused.append(verdict)
    # A save that could not get its name stands for the incomplete folder of this name.
    refused = [one for one in refused if one.kind == Kind.UNREADABLE or step_of(one.folder) not in complete]
    refused += [Verdict(one, Kind.MISNAMED) for one in _misnamed(folder)]
    return Checkpoints(folder, complete, tuple(refused))


def _misnamed(folder: Path) -> list[Path]:
    """Return the folders that may be checkpoints and have another name than ``step-N``, such as ``step-10.partial``.

    A copy program or a user has given such a name. No run loads or deletes these folders.

    Raises:
        InputError: if the folder cannot be listed.
    """
    found = []
    for one in _entries(folder):
        own = one.name.startswith((_UNFINISHED, REMOVED, SET_ASIDE)) or is_checkpoint_name(one.name)
        if own or not one.is_dir():
            continue
        if _LIKE_A_STEP.search(one.name) or any(
            os.path.lexists(Path(one.path, name)) for name in (MANIFEST, DCP_METADATA)
        ):
            found.append(Path(one.path))
    return sorted(found)


def is_checkpoint_name(name: str) -> bool:
    """Return whether a folder of this name is a checkpoint, and not the folder of a run."""
    match = _STEP.fullmatch(name)
    return match is not None and match[3] is None


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint's folder, published or not.

    Raises:
        InputError: if the folder has another name.
    """
    match = _STEP.fullmatch(checkpoint.name.removeprefix(_UNFINISHED))
    if match is None:
        raise InputError(f"{checkpoint}: the name of this checkpoint is not step-N: give the folder its step as name")
    return int(match[2])


def unfinished_of(checkpoint: Path) -> Path:
    """Return a free hidden name for a save of ``checkpoint``."""
    name = f"{_UNFINISHED}{checkpoint.name}"
    free, number = checkpoint.with_name(name), 1
    while os.path.lexists(free):
        number += 1
        free = checkpoint.with_name(f"{name}-{number}")
    return free


def remains(folder: Path) -> list[Path]:
    """Return the folders of interrupted saves and removals, and of saves that a later save of the step replaces."""
    return [*unfinished(folder), *folder.glob(f"{REMOVED}*")]


def unfinished(folder: Path) -> list[Path]:
    """Return the folders of interrupted saves, and of saves that a later save of the step replaces."""
    hidden = [one for _, one in _step_folders(folder) if _is_hidden(one)]
    if not hidden:
        return []
    found = find_checkpoints(folder)
    kept = {*found.complete.values(), *(one.folder for one in found.of_kind(Kind.UNREADABLE))}
    return [one for one in hidden if one not in kept]


def publish(unfinished: Path) -> Path:
    """Give a complete checkpoint its name. An older folder of this name gets the name of a removed folder.

    Raises:
        OSError: if a folder cannot be renamed. The checkpoint then stays complete under its hidden name.
    """
    checkpoint = unfinished.with_name(f"step-{step_of(unfinished)}")
    if os.path.lexists(checkpoint):
        replaced = removed_name(checkpoint)
        checkpoint.rename(replaced)
        try:
            unfinished.rename(checkpoint)
        except OSError:
            replaced.rename(checkpoint)
            raise
    else:
        unfinished.rename(checkpoint)
    return checkpoint


def removed_name(checkpoint: Path) -> Path:
    """Return a free name for a folder that is about to be deleted."""
    return checkpoint.with_name(f"{REMOVED}{checkpoint.name.lstrip('.')}-{time.time_ns()}")


def set_aside(folder: Path) -> list[Path]:
    """Rename every incomplete checkpoint of ``folder``, so that no run finds or deletes it. Return the new folders.

    Raises:
        InputError: if a folder cannot be renamed.
    """
    aside = []
    for checkpoint in (one.folder for one in find_checkpoints(folder).of_kind(Kind.INCOMPLETE)):
        free, number = checkpoint.with_name(f"{SET_ASIDE}{checkpoint.name}"), 1
        while os.path.lexists(free):
            number += 1
            free = checkpoint.with_name(f"{SET_ASIDE}{checkpoint.name}-{number}")
        try:
            checkpoint.rename(free)
        except OSError as error:
            raise InputError(
                f"{checkpoint} cannot be renamed to {free.name} ({why(error)}): choose another dump_folder"
            ) from None
        aside.append(free)
    return aside


def _is_hidden(checkpoint: Path) -> bool:
    return checkpoint.name.startswith(_UNFINISHED)


def _completed(checkpoint: Path) -> int:
    """Return the time at which the last file of a checkpoint was written."""
    try:
        return (checkpoint / MANIFEST).stat().st_mtime_ns
    except OSError:  # another process has renamed the folder
        return 0


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return the step and the path of every folder and link with the name of a checkpoint."""
    found = []
    for entry in _entries(folder):
        match = _STEP.fullmatch(entry.name.removeprefix(_UNFINISHED))
        numbered = match is not None and match[3] is not None and not entry.name.startswith(_UNFINISHED)
        if match is not None and not numbered and not entry.is_file(follow_symlinks=False):
            found.append((int(match[2]), Path(entry.path)))
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the files and folders of a folder. A folder that does not exist has none.

    Raises:
        InputError: if the folder cannot be listed.
    """
    try:
        return list(os.scandir(folder))
    except OSError as error:
        if error.errno in NOT_THERE:
            return []
        raise InputError(
            f"{folder} cannot be read ({why(error)}): repeat the command when this user can read the folder"
        ) from None
