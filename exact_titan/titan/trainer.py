"""The run around the optimizer steps: its record, its logs, its checkpoints, its moving average, and its end.

1. :func:`exact_titan.titan.preflight.complete` has checked the config. Rank 0 writes the record of the run.
2. After the load of a checkpoint the logs start. An interrupted validation is repeated.
3. :class:`StepTrainer` runs the optimizer steps.
4. The run ends after its last step, at a requested stop, or at a non-finite value.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger
from tqdm import tqdm

from exact_titan.runs.locations import record_locations
from exact_titan.titan import cpu, torch_versions
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.console import progress_bar
from exact_titan.titan.ema import KEY as EMA
from exact_titan.titan.ema import WeightAverage
from exact_titan.titan.header import header, summary
from exact_titan.titan.health import Health
from exact_titan.titan.identity import record_of
from exact_titan.titan.nonfinite import NonFinite
from exact_titan.titan.nonfinite_message import explain
from exact_titan.titan.optimizer import apply_options
from exact_titan.titan.preflight import complete, is_complete, packed_tokenizer
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.start import write_model_copy
from exact_titan.titan.step_trainer import StepTrainer
from exact_titan.titan.stop import StopAgreement, Stopped
from exact_titan.titan.validate import ExposureValidator

# torchtitan's own command also builds this trainer (--module exact_titan), without exact_titan.train.
torch_versions.install()
cpu.install()


class ExactTrainer(StepTrainer):
    """Trains on packed datasets with :class:`ExactLoss`.

    The windows, the weights of the loss and the tokenizer come from ``dataloader.dataset_path`` by default.
    """

    Config = RunConfig

    checkpointer: ResumableCheckpoints
    validator: ExposureValidator

    stop: StopAgreement
    """After ``stop.ask(…)``, :meth:`train` saves a checkpoint and raises :class:`Stopped` on all ranks."""

    average: WeightAverage | None
    """The moving average of the weights, with ``ema.decay``."""

    def __init__(self, config: RunConfig) -> None:
        # exact_titan.train has completed the config. torchtitan's own entry point builds an incomplete recipe.
        if not is_complete(config):
            config = complete(config)
        super().__init__(config)
        if dist.get_rank() == 0:
            eos_id = self.dataloader.mixture.datasets[0].manifest.tokenizer.eos_id
            write_model_copy(config, dataset_tokenizer=packed_tokenizer(config), eos_id=eos_id)
            if config.checkpoint.enable and not config.checkpoint.load_only:
                record_locations(Path(config.dump_folder), Path(self.checkpointer.folder))
            self._write_record()
        self.checkpointer.clock = self.clock
        self.average = self._build_average()
        self.optimizers.register_step_post_hook(lambda *_: self.clock.end())
        self.metrics_processor.health = Health(
            self.clock,
            self.dataloader.imbalance,
            steps=config.training.steps,
            tokens_per_step=self.windows_per_step * config.training.seq_len,
        )
        self.checkpointer.before_save = self._before_save
        self.stop = StopAgreement.of_process_group(Path(config.dump_folder))
        if config.validator.enable:
            self.validator.stop = self.stop
            self.validator.on_validated = self.checkpointer.mark_validated
            self.validator.average = self.average
        self._begun = False
        self._progress: tqdm | None = None

    def _build_average(self) -> WeightAverage | None:
        """Return the moving average of the weights, which every optimizer step updates and every checkpoint holds."""
        if not self.config.ema.decay:
            return None
        wait = self.checkpointer.maybe_wait_for_staging
        average = WeightAverage(self.config.ema.decay, self.model_parts, before_exchange=wait)
        if self.config.checkpoint.enable:
            self.checkpointer.states[EMA] = average
        self.optimizers.register_step_post_hook(lambda *_: average.update())
        return average

    def train(self) -> None:
        """Train to the last step. The run resumes from the last complete checkpoint if there is one.

        Raises:
            Stopped: on all ranks after the same step, if a stop was requested. A checkpoint of that step is saved.
            NonFinite: on all ranks, if a loss or the gradient is NaN or infinite. No checkpoint contains the value.
        """
        begun = time.monotonic()
        try:
            self._train()
            self._summarize(begun, finished=True)
        except Stopped:
            self._summarize(begun, finished=False)
            raise
        except NonFinite as found:
            self.checkpointer.maybe_wait_for_saving()
            if dist.get_rank() == 0:
                lines = explain(found, step=self.step, saved=self.checkpointer.saved_step, loader=self.dataloader)
                print("\n".join(lines), file=sys.stderr, flush=True)
            raise

    def _summarize(self, begun: float, *, finished: bool) -> None:
        """Show the results and the next commands. A collective call. ``begun``: ``time.monotonic()`` of the start."""
        tokens = self._tokens()
        if dist.get_rank() == 0 and self.step:
            for line in summary(self, seconds=time.monotonic() - begun, tokens=tokens, finished=finished):
                logger.info(line)

    def _train(self) -> None:
        try:
            self.stop.check()
            try:
                super().train()
            finally:
                if self._progress is not None:
                    self._progress.close()
            self.nonfinite.check()
            if 0 < self.step < self.config.training.steps:
                # torchtitan's own message goes into the log file.
                logger.warning(
                    f"{self.dataloader.config.dataset_path} has no more windows: the run ends after step {self.step} "
                    f"of {self.config.training.steps}; --dataloader.infinite repeats the windows"
                )
                self.checkpointer.save_now(self.step)
            self.checkpointer.maybe_wait_for_saving()
        except Stopped as stopped:
            self.nonfinite.check()
            if self.step == 0:
                logger.info(f"{stopped.reason}: stopped before the first step, there is nothing to save")
            elif self.checkpointer.save_now(self.step):
                logger.info(
                    f"{stopped.reason}: stopped after step {self.step} and saved; the same command resumes the run"
                )
            else:
                raise RuntimeError(
                    f"{stopped.reason}: stopped after step {self.step}, and nothing is saved: checkpointing is off"
                ) from None
            raise

    def should_continue_training(self) -> bool:
        """Return whether another step follows, as torchtitan does. A requested stop happens here, before a step.

        A resumed run first repeats the validation of the checkpoint's step, if that validation was interrupted.
        """
        if not self._begun:
            self._begun = True
            self._begin()
        more = super().should_continue_training()
        if more:
            if (detected := self.nonfinite.detected()) is not None:
                self.stop.ask(detected)
            self.stop.check()
        return more

    def _before_save(self) -> None:
        self.nonfinite.check()
        self.metrics_processor.flush()

    def _write_record(self) -> None:
        """Write ``run.json`` of a new run, and hand the record to the checkpoints. Rank 0 calls this method.

        The record of a resume is written after the load: a damaged checkpoint changes no file of the run.
        """
        resume = self.config._resume
        record = record_of(self.config, resume.record if resume else None)
        self.checkpointer.record = record
        if resume is None:
            record.write(Path(self.config.dump_folder))
            return
        if resume.record is None:
            logger.warning(f"{resume.checkpoint} has no run.json: its options are not known and not compared")
        for change in resume.changes:
            logger.info(f"from step {resume.step + 1} on: {change}")

    def _begin(self) -> None:
        """Apply the options, start the logs after the load of the checkpoint, and repeat an interrupted validation."""
        if self.config._resume is not None and self.checkpointer.record is not None:  # rank 0
            self.checkpointer.record.write(Path(self.config.dump_folder))
        if self.step > 0:
            apply_options(self.lr_schedulers, self.config.optimizer)
        if self.average is not None and not self.average.started:
            self.average.start()
            if self.step > 0:
                logger.info(f"the checkpoint has no moving average: it starts from the weights of step {self.step}")
        repeat = self.step > 0 and self.config.validator.enable and self.validator.should_validate(self.step)
        repeat = repeat and not self.checkpointer.is_validated(self.step)
        self.metrics_processor.begin(self.step, validated=not repeat)
        if dist.get_rank() == 0:
            for line in header(self):
                logger.info(line)
            self._progress = progress_bar(self.step, self.config.training.steps)
        if repeat:
            self.validator.validate(self.model_parts, self.step)

    def train_step(self, data_iterator) -> None:
        """Run one optimizer step, and move the progress bar."""
        super().train_step(data_iterator)
        if self._progress is not None:
            self._progress.update()

    def _tokens(self) -> int:
        """Return the tokens of the run so far, over all ranks. A collective call."""
        mesh = self.parallel_dims.get_optional_mesh("loss")
        return int(dist_utils.dist_sum_tensor(torch.tensor(self.ntokens_seen, device=self.device), mesh))

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's trainer state, the tokens of all ranks, and the state of the loss. A collective call."""
        return {**super().state_dict(), "ntokens_seen": self._tokens(), "exposure": self.loss_fn.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # The saved number is the sum of the ranks of :meth:`_tokens`. One of these ranks continues the number.
        mesh = self.parallel_dims.get_optional_mesh("loss")
        self.ntokens_seen = state_dict["ntokens_seen"] if mesh is None or mesh.get_local_rank() == 0 else 0
        self.checkpointer.saved_step = self.step
        self.loss_fn.load_state_dict(state_dict["exposure"])

    def close(self) -> None:
        if hasattr(self, "stop"):
            self.stop.close()
        super().close()
