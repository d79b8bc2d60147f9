"""torchtitan's checkpoints, and one at once when a run is stopped."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.dcp import AsyncMode

from exact_titan.titan.step_clock import StepClock


class ResumableCheckpoints(CheckpointManager):
    """torchtitan's checkpoint manager that can also save at once."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        pass

    clock: StepClock | None = None
    """Told how long the run waits for its checkpoints; set by the trainer."""

    saved_step: int = 0
    """Step of the last checkpoint that this process has saved or loaded; 0: none yet."""

    @torch.no_grad()
    def save_now(self, step: int) -> bool:
        """Save all that a resume needs, whatever the interval, and wait for it; every rank calls it.

        Returns:
            Whether there is a checkpoint of this step now; False where checkpointing is off.
        """
        if not self.enable or self.load_only:
            return False
        self.maybe_wait_for_staging()
        self.maybe_wait_for_saving()
        if step != self.saved_step:
            checkpoint = self._create_checkpoint_id(step)
            self.dcp_save(self._flattened_model_states_sd(), checkpoint, AsyncMode.DISABLED)
            self.saved_step = step
        return True

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
