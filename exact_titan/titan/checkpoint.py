"""torchtitan's checkpoints for runs that can stop at any step: the saves. :mod:`checkpoint_loading` has the loads."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.dcp import AsyncMode
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import GarbageCollection

from exact_titan.runs.checkpoint_folders import publish, step_of, unfinished_of
from exact_titan.runs.checkpoint_manifest import write_manifest
from exact_titan.runs.run_record import RunRecord
from exact_titan.system.file_errors import why
from exact_titan.titan.checkpoint_loading import CompleteCheckpoints
from exact_titan.titan.checkpoint_removal import Removal
from exact_titan.titan.checkpoint_writer import CheckpointWriter, save_with
from exact_titan.titan.failed_saves import disk_error, not_saved, skipped
from exact_titan.titan.rank_0 import as_rank_0
from exact_titan.titan.step_clock import StepClock

_VALIDATED = "validated"


class ResumableCheckpoints(CompleteCheckpoints):
    """torchtitan's checkpoint manager for runs that may be interrupted at any moment.

    - A checkpoint is complete when all its files are on the disk (:mod:`exact_titan.runs.checkpoint_manifest`). This
      holds for synchronous and asynchronous saves. A resume loads the last complete checkpoint. Rank 0 chooses the
      checkpoint. The log names newer incomplete checkpoints with the reason.
    - A save writes into a hidden folder. The folder gets its name when the checkpoint is complete
      (:mod:`exact_titan.runs.checkpoint_folders`). A save of a step that has a checkpoint replaces this checkpoint only
      then.
    - ``keep_latest_k`` counts complete checkpoints. No checkpoint is removed before a newer one is complete. The files
      of interrupted saves are removed at the same time (:mod:`exact_titan.titan.checkpoint_removal`).
    - A periodic save that the disk refuses is a warning, and the run continues (:mod:`exact_titan.titan.failed_saves`).
    - :meth:`save_now` saves the full state for a resume, at any step.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        verify_on_load: bool = True
        """Whether a load first compares the SHA-256 of every file of the checkpoint with files.json. The processes
        share the files. The comparison finds a changed file of the right size."""

        start_over: bool = False
        """Whether a run starts at step 1 if its folder has checkpoints and none is complete. The run renames these
        checkpoints to set-aside-step-N and keeps them. No effect if a checkpoint is complete."""

        def __post_init__(self) -> None:
            # torchtitan's messages name no option.
            if self.interval < 1:
                raise ValueError(f"checkpoint.interval is {self.interval}: it must be 1 or more")
            if self.keep_latest_k < 0 or self.keep_latest_k == 1:
                raise ValueError(
                    f"checkpoint.keep_latest_k is {self.keep_latest_k}: keep at least 2 checkpoint replicas, or 0 (all)"
                )
            CheckpointManager.Config.__post_init__(self)

    clock: StepClock | None = None
    """The clock gets the time that the run waits for its checkpoints. Set by the trainer."""

    saved_step: int = 0
    """Step of the last checkpoint that this process has saved or loaded. 0: no checkpoint yet."""

    purge_thread: threading.Thread | None

    _saved_before: int = 0
    """``saved_step`` before the save that is being written."""

    _validated_step: int = 0

    before_save: Callable[[], None] | None = None
    """Called on every rank before each save. An exception prevents the save."""

    record: RunRecord | None = None
    """The identity of the run. Every checkpoint gets a copy. Set by the trainer on rank 0."""

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        # Without checkpoints torchtitan sets no thread. Removal replaces it.
        if (thread := getattr(self, "purge_thread", None)) is not None:
            self.purge_queue.put(None)
            thread.join()
            self.purge_thread = None
        self.verify_on_load, self.start_over = config.verify_on_load, config.start_over
        self._publishing = threading.Lock()
        if self.enable:
            self._removal = Removal(Path(self.folder), keep=self.keep_latest_k)

    @torch.no_grad()
    def save_now(self, step: int) -> bool:
        """Save the full state for a resume and wait for the save. Do nothing if this step is saved already.

        Every rank calls this method.

        Returns:
            Whether a checkpoint of this step exists now. False if checkpointing is off.

        Raises:
            InputError: on all ranks, if the disk refuses the save.
        """
        if not self.enable or self.load_only:
            return False
        try:
            self.maybe_wait_for_staging()
            self.maybe_wait_for_saving()
        except (Exception, CheckpointException) as error:  # a signal may also have ended the saving process
            logger.warning(f"The asynchronous save has failed and is repeated now: {error}")
            self.staging_future = self.save_future = None
            self.saved_step = self._saved_before
        # A failed save reaches every rank or rank 0 alone. All ranks must save again, or none.
        if as_rank_0(lambda: self.saved_step) != step:
            try:
                self.dcp_save(self._flattened_model_states_sd(), self._create_checkpoint_id(step), AsyncMode.DISABLED)
            except (OSError, CheckpointException) as error:
                self._refuse(step, error)
        self.saved_step = step
        return True

    def _refuse(self, step: int, error: BaseException) -> NoReturn:
        """Raise an error of the disk as one line, and any other error as it is."""
        if (cause := disk_error(error)) is None:
            raise error
        self._remove_failed(step)
        raise not_saved(step, self.saved_step, cause) from error

    def _skip(self, step: int, error: BaseException) -> None:
        """Warn about a save that the disk refuses, and make room for the next save. Raise any other error."""
        if (cause := disk_error(error)) is None:
            raise error
        logger.warning(skipped(step, self.saved_step, cause))
        self._remove_failed(step)

    def _remove_failed(self, step: int) -> None:
        """Remove the files of a failed save. All ranks have stopped to write: PyTorch has told them the failure."""
        if dist.get_rank() == 0:
            self._removal.failed(step)

    def mark_validated(self, step: int) -> None:
        """Record in the checkpoint of ``step`` that the validation of the step has finished.

        If the step has no checkpoint yet, :meth:`save_now` records the validation later.
        """
        with self._publishing:  # the save of this step may become complete at this moment
            self._validated_step = step
            if self.enable and not self.load_only and step == self.saved_step and dist.get_rank() == 0:
                self._mark(self._folder_of(step))

    def is_validated(self, step: int) -> bool:
        """Return whether the validation of the checkpoint's step has finished. All ranks get the same answer."""
        return bool(as_rank_0(lambda: (self._folder_of(step) / _VALIDATED).exists()))

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Future | AsyncSaveResponse | None:
        """Save as torchtitan does. The returned future is done when the checkpoint is complete."""
        if self.before_save is not None:
            self.before_save()
        # All ranks write into the folder that rank 0 has chosen.
        folder = Path(as_rank_0(lambda: str(unfinished_of(Path(checkpoint_id)))))
        if to_hf:
            saving = super().dcp_save(state_dict, str(folder), async_mode, enable_garbage_collection, to_hf)
        else:
            writer = CheckpointWriter(folder, name=Path(checkpoint_id), record=self.record)
            saving = save_with(writer, state_dict, async_mode, group=self.pg, stager=self.stager)
            if enable_garbage_collection:
                GarbageCollection.collect("GC collection invoked by checkpointer.")
        if dist.get_rank() != 0:
            return saving
        if isinstance(saving, AsyncSaveResponse):
            return AsyncSaveResponse(saving.staging_completion, self._completed(saving.upload_completion, folder))
        if isinstance(saving, Future):
            return self._completed(saving, folder)
        if to_hf:
            if self.record is not None:
                self.record.write(folder)
            write_manifest(folder)
        self._complete(folder)
        return saving

    def _timed(self) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock.host("checkpoint")

    def _maybe_wait_for_staging(self) -> None:
        with self._timed():
            super()._maybe_wait_for_staging()

    def _wait_for_saving(self) -> None:
        """Wait for the asynchronous save. A save that the disk refuses is a warning."""
        try:
            super()._wait_for_saving()
        except (OSError, CheckpointException) as error:
            failed, self.saved_step = self.saved_step, self._saved_before
            self._skip(failed, error)
            self.save_future = None

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        """Save as torchtitan does.

        Raises:
            InputError: on all ranks, if the disk refuses the last save.
        """
        try:
            with self._timed():
                saved = super()._save(curr_step, last_step)
        except (OSError, CheckpointException) as error:
            if last_step:
                self._refuse(curr_step, error)
            self._skip(curr_step, error)
            return False
        if saved:
            self._saved_before, self.saved_step = self.saved_step, curr_step
        return saved

    def _completed(self, saving: Future, checkpoint: Path) -> Future:
        """Return a future that is done when the checkpoint of ``saving`` is complete. The call does not wait."""
        done: Future = Future()

        def complete(saved: Future) -> None:
            try:
                saved.result()
                self._complete(checkpoint)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        saving.add_done_callback(complete)
        return done

    def _complete(self, folder: Path) -> None:
        """Give a complete checkpoint its name, and remove the checkpoints that it replaces."""
        with self._publishing:
            if step_of(folder) == self._validated_step:
                self._mark(folder)
            try:
                checkpoint = publish(folder)
            except OSError as error:
                checkpoint = folder
                logger.warning(f"{folder} is complete, but keeps this name, because it cannot be renamed: {why(error)}")
        logger.info(f"checkpoint {checkpoint} saved")
        self._removal.after(checkpoint)

    def _mark(self, checkpoint: Path) -> None:
        try:
            (checkpoint / _VALIDATED).touch()
        except FileNotFoundError:  # the checkpoint is being saved, and gets the file when it is complete
            pass
        except OSError as error:
            logger.warning(f"{checkpoint / _VALIDATED} cannot be written: {why(error)}")

    def _purge_stale_checkpoints(self) -> None:
        """Remove nothing when a save starts, unlike torchtitan: the last checkpoint may be the only complete one."""

    def __del__(self) -> None:
        """Do nothing: the trainer closes the checkpoints.

        torchtitan's method waits for threads that log. A garbage collection inside a log call would then never end.
        """

    def _close(self) -> None:
        super()._close()
        self._removal.close()
