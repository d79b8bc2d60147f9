"""The load of a checkpoint: a resume loads only complete checkpoints.

1. Rank 0 gives complete checkpoints their names if a kill has prevented this.
2. Rank 0 chooses the last complete checkpoint. The log names the newer checkpoints with the reason.
3. All ranks compare the files with ``files.json``, and load the states.
"""

from pathlib import Path
from typing import Any

from torchtitan.components.checkpointer import MODEL, CheckpointManager
from torchtitan.tools.logging import logger

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_errors import reading_checkpoint
from exact_titan.runs.checkpoint_folders import find_checkpoints, publish, set_aside
from exact_titan.runs.checkpoint_reader import load_checkpoint
from exact_titan.runs.checkpoint_verdict import Kind
from exact_titan.runs.run_folder import stored_names
from exact_titan.system.file_errors import why
from exact_titan.titan.checkpoint_verification import verify_files
from exact_titan.titan.ema import KEY as EMA
from exact_titan.titan.rank_0 import as_rank_0


class CompleteCheckpoints(CheckpointManager):
    """torchtitan's checkpoint manager that loads only complete checkpoints."""

    verify_on_load: bool
    """Whether a load first compares every file with ``files.json``."""

    start_over: bool
    """Whether a run starts at step 1 if its folder has checkpoints and none is complete."""

    def _load(self, step: int = -1) -> bool:
        # torchtitan loads a checkpoint by the name of its step.
        as_rank_0(lambda: self._publish_hidden(step))
        return super()._load(step)

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """Load as torchtitan does. Leave out the average of the weights if the checkpoint has none.

        Raises:
            InputError: on all ranks, if a file of the checkpoint cannot be read, or is not the file that was saved.
        """
        if self.verify_on_load and not from_hf:
            verify_files(Path(checkpoint_id))
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
        return int(as_rank_0(lambda: self._last_complete(Path(folder or self.folder))))

    def _last_complete(self, folder: Path) -> int:
        found = find_checkpoints(folder)
        last = max(found.complete, default=-1)
        if last == -1 and self.start_over and not self.load_only:
            for aside in set_aside(folder):
                logger.warning(f"checkpoint.start_over is on: {aside} is kept, and the run starts at step 1")
            return last
        skipped = [one for one in found.refused if one.kind != Kind.UNREADABLE]
        for one in skipped:
            logger.warning(one.line(skipped=True))
        if any(one.kind == Kind.INCOMPLETE for one in skipped):
            logger.warning(f"The last complete checkpoint is {found.complete[last] if found.complete else 'none'}")
        return last

    def _publish_hidden(self, wanted: int) -> None:
        """Give checkpoints their names if a kill has prevented it: the checkpoint of step ``wanted``, or all for -1.

        Raises:
            InputError: if the wanted step has no complete checkpoint, or if a folder cannot be renamed.
        """
        found, checkpoint = find_checkpoints(Path(self.folder)), self._folder_of(wanted)
        if wanted != -1 and wanted not in found.complete:
            verdict = found.of_folder(checkpoint)
            reason = verdict.reason if verdict else "there is no such folder"
            raise InputError(f"checkpoint.load_step is {wanted}, but {checkpoint} is not complete: {reason}")
        for step, one in found.complete.items():
            if wanted in (-1, step) and one != self._folder_of(step):
                try:
                    publish(one)
                except OSError as error:
                    raise InputError(
                        f"{one} cannot be renamed to step-{step} ({why(error)}): rename the folder"
                    ) from None

    def _folder_of(self, step: int) -> Path:
        return Path(self._create_checkpoint_id(step))
