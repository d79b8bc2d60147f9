"""The removal of checkpoints that newer checkpoints replace, and of the remains of interrupted saves."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torchtitan.tools.logging import logger

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_folders import REMOVED, find_checkpoints, remains, removed_name, step_of, unfinished
from exact_titan.runs.checkpoint_verdict import Kind
from exact_titan.system.file_errors import why


class Removal:
    """Removes checkpoints after a newer checkpoint is complete. A failure is a warning and never ends the run.

    1. Complete checkpoints: all except the last ``keep`` checkpoints.
    2. Incomplete checkpoints that are older than the last complete checkpoint. A later incomplete checkpoint stays,
       because another program may still copy its files.
    3. The remains of interrupted saves and of interrupted removals.

    A checkpoint that cannot be read stays. Every folder is renamed before its files are deleted. An interruption of the
    removal therefore leaves no damaged checkpoint. A thread deletes the files, because deleting is slow on some disks.

    Args:
        folder: the folder of the checkpoints.
        keep: number of complete checkpoints to keep. 0: all, and the incomplete checkpoints.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._handled: set[Path] = set()
        self._refused: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "removal of checkpoints")

    def after(self, saved: Path) -> None:
        """Remove what the complete checkpoint ``saved`` replaces."""
        try:
            replaced = remains(self._folder)
            if self._keep:
                found = find_checkpoints(self._folder)
                replaced += list(found.complete.values())[: -self._keep]
                last = max(found.complete, default=0)
                incomplete = [one.folder for one in found.of_kind(Kind.INCOMPLETE)]
                replaced += [one for one in incomplete if step_of(one) < last]
        except (OSError, InputError) as error:
            logger.warning(f"The checkpoints before {saved} stay on the disk: {error}")
            return
        for one in replaced:
            # The new checkpoint may have a lower step than the kept ones, after a resume from an earlier step.
            if one != saved:
                self._remove(one)

    def failed(self, step: int) -> None:
        """Remove the files of the save of ``step``, which has failed. The next save needs the room."""
        try:
            found = [one for one in unfinished(self._folder) if step_of(one) == step]
        except (OSError, InputError) as error:
            logger.warning(f"The files of the failed save of step {step} stay on the disk: {error}")
            return
        for one in found:
            self._remove(one)

    def _remove(self, path: Path) -> None:
        try:
            if path.is_symlink():  # the linked folder is not in the folder of the run
                path.unlink()
                return
            if not path.name.startswith(REMOVED):
                path = path.rename(removed_name(path))
        except OSError as error:
            if path not in self._refused:
                logger.warning(f"{path} cannot be removed and stays on the disk: {why(error)}")
            self._refused.add(path)
            return
        if path not in self._handled:  # the thread may be at work on it, or could not delete it
            self._handled.add(path)
            self._thread.submit(_delete, path)

    def close(self) -> None:
        """Wait for the removals."""
        self._thread.shutdown()


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:  # another process has deleted it
        pass
    except OSError as error:
        logger.warning(f"{folder} cannot be deleted and stays on the disk: {error}")
    else:
        logger.info(f"{folder} deleted")
