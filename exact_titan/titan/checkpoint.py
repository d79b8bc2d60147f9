"""torchtitan's checkpoints for runs that can stop at any step. A resume loads only complete checkpoints."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torchtitan.components.checkpointer import MODEL, CheckpointManager
from torchtitan.components.checkpointer.dcp import AsyncMode
from torchtitan.tools import filesystem
from torchtitan.tools.logging import logger

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_manifest import find_checkpoints, reading_checkpoint, why_incomplete, write_manifest
from exact_titan.runs.checkpoint_reader import load_checkpoint
from exact_titan.runs.run_folder import stored_names
from exact_titan.runs.run_record import RunRecord
from exact_titan.titan.ema import KEY as EMA
from exact_titan.titan.step_clock import StepClock

_VALIDATED = "validated"
_REMOVED = ".removed-"


class ResumableCheckpoints(CheckpointManager):
    """torchtitan's checkpoint manager for runs that may be interrupted at any moment.

    - A checkpoint is complete when all its files are on the disk (:mod:`exact_titan.runs.checkpoint_manifest`). This
      holds for synchronous and asynchronous saves. A resume loads the last complete checkpoint. Rank 0 chooses the
      checkpoint. The log names newer incomplete checkpoints with the reason.
    - ``keep_latest_k`` counts complete checkpoints. No checkpoint is removed before a newer one is complete. The files
      of interrupted saves are removed at the same time.
    - :meth:`save_now` saves the full state for a resume, at any step.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
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

    _validated_step: int = 0

    before_save: Callable[[], None] | None = None
    """Called on every rank before each save. An exception prevents the save."""

    record: RunRecord | None = None
    """The identity of the run. Every checkpoint gets a copy. Set by the trainer on rank 0."""

    @torch.no_grad()
    def save_now(self, step: int) -> bool:
        """Save the full state for a resume and wait for the save. Do nothing if this step is saved already.

        Every rank calls this method.

        Returns:
            Whether a checkpoint of this step exists now. False if checkpointing is off.
        """
        if not self.enable or self.load_only:
            return False
        try:
            self.maybe_wait_for_staging()
            self.maybe_wait_for_saving()
        except (Exception, CheckpointException) as error:  # a signal may also have ended the saving process
            logger.warning(f"The asynchronous save has failed and is repeated now: {error}")
            self.staging_future = self.save_future = None
            self.saved_step = 0
        if step != self.saved_step:
            self.dcp_save(self._flattened_model_states_sd(), self._create_checkpoint_id(step), AsyncMode.DISABLED)
            self.saved_step = step
            if step == self._validated_step:
                self.mark_validated(step)
        return True

    def mark_validated(self, step: int) -> None:
        """Record in the checkpoint of ``step`` that the validation of the step has finished.

        If the step has no checkpoint yet, :meth:`save_now` records the validation later.
        """
        self._validated_step = step
        if self.enable and not self.load_only and step == self.saved_step and dist.get_rank() == 0:
            folder = self._folder_of(step)
            folder.mkdir(parents=True, exist_ok=True)  # an asynchronous save may not have created the folder yet
            (folder / _VALIDATED).touch()

    def is_validated(self, step: int) -> bool:
        """Return whether the validation of the checkpoint's step has finished. All ranks get the same answer."""
        return bool(_as_rank_0(lambda: (self._folder_of(step) / _VALIDATED).exists()))

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
        checkpoint = Path(checkpoint_id)
        if dist.get_rank() == 0 and checkpoint.exists():
            # The folder is from an interrupted save, or from a run that resumed from an earlier step. Its files must
            # not mix with the new files. No rank writes before rank 0 has distributed the save plan.
            self._remove(checkpoint)
        saving = super().dcp_save(state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        if dist.get_rank() != 0:
            return saving
        if isinstance(saving, AsyncSaveResponse):
            return AsyncSaveResponse(saving.staging_completion, self._completed(saving.upload_completion, checkpoint))
        if isinstance(saving, Future):
            return self._completed(saving, checkpoint)
        self._complete(checkpoint)
        return saving

    def _timed(self) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock.host("checkpoint")

    def _maybe_wait_for_staging(self) -> None:
        with self._timed():
            super()._maybe_wait_for_staging()

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        with self._timed():
            saved = super()._save(curr_step, last_step)
        if saved:
            self.saved_step = curr_step
        return saved

    def _load(self, step: int = -1) -> bool:
        if step != -1 and (why := why_incomplete(self._folder_of(step))) is not None:
            raise InputError(f"checkpoint.load_step is {step}, but {self._folder_of(step)} is not complete: {why}")
        return super()._load(step)

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """Load as torchtitan does. Leave out the average of the weights if the checkpoint has none.

        Raises:
            InputError: on all ranks, if a file of the checkpoint cannot be read.
        """
        remedy = {"remedy": "download it again"} if from_hf else {}
        if EMA in state_dict and not any(name.startswith(f"{EMA}.") for name in stored_names(Path(checkpoint_id))):
            state_dict = {name: state for name, state in state_dict.items() if name != EMA}
        with reading_checkpoint(Path(checkpoint_id), **remedy):
            if from_hf:
                super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
                return
            # torchtitan's method, with a reader that runs no code of the checkpoint.
            load_checkpoint(state_dict, Path(checkpoint_id))
            if MODEL in self.states:
                self.states[MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        return int(_as_rank_0(lambda: self._last_complete(Path(folder or self.folder))))

    def _last_complete(self, folder: Path) -> int:
        complete, incomplete = find_checkpoints(folder)
        for checkpoint, why in incomplete.items():
            logger.warning(f"{checkpoint} is not complete and is skipped: {why}")
        if incomplete:
            logger.warning(f"The last complete checkpoint is {complete[max(complete)] if complete else 'none'}")
        return max(complete, default=-1)

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

    def _complete(self, checkpoint: Path) -> None:
        """Mark the checkpoint as complete after all ranks have written, and remove the checkpoints that it replaces."""
        if self.record is not None:
            self.record.write(checkpoint)
        write_manifest(checkpoint)
        logger.info(f"checkpoint {checkpoint} saved")
        if self.keep_latest_k:
            complete, incomplete = find_checkpoints(Path(self.folder))
            for one in [*list(complete.values())[: -self.keep_latest_k], *incomplete]:
                if one != checkpoint:  # the new checkpoint may have a lower step, after a resume from an earlier step
                    self._remove(one)

    def _purge_stale_checkpoints(self) -> None:
        """Remove nothing when a save starts, unlike torchtitan: the last checkpoint may be the only complete one."""

    def _remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint in torchtitan's removal thread. Without that thread, remove the checkpoint directly."""
        # The rename happens first, because a later save of the same step must not collide with the thread.
        checkpoint.rename(checkpoint.with_name(f"{_REMOVED}{checkpoint.name}-{time.time_ns()}"))
        for removed in checkpoint.parent.glob(f"{_REMOVED}*"):
            if self.purge_thread is None:
                filesystem.rmtree(str(removed))
            else:
                self.purge_queue.put(str(removed))

    def _folder_of(self, step: int) -> Path:
        return Path(self._create_checkpoint_id(step))


def _as_rank_0(value: Callable[[], Any]) -> Any:
    """Return the result of ``value`` on rank 0 to all ranks. Other ranks may see other files on a shared disk."""
    box = [value() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]
