"""torchtitan's trainer with EXACT: document borders from the host, refreshed weights, and runs that can be stopped."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer
from tqdm import tqdm

from exact_titan.reports.window import window_summary
from exact_titan.runs.locations import record_locations
from exact_titan.titan import cpu, layout, torch_versions
from exact_titan.titan.attention_work import share_work
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.console import progress_bar
from exact_titan.titan.ema import KEY as EMA
from exact_titan.titan.ema import WeightAverage
from exact_titan.titan.header import header, summary
from exact_titan.titan.health import Health
from exact_titan.titan.identity import record_of
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.attention import varlen_metadata
from exact_titan.titan.model.flops import attention_pairs
from exact_titan.titan.nonfinite import NonFinite, NonFiniteDetector
from exact_titan.titan.optimizer import apply_options
from exact_titan.titan.preflight import complete, is_complete, packed_tokenizer
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.start import write_model_copy
from exact_titan.titan.step_clock import StepClock
from exact_titan.titan.stop import StopAgreement, Stopped
from exact_titan.titan.validate import ExposureValidator

# torchtitan's own command also builds this trainer (--module exact_titan), without exact_titan.train.
torch_versions.install()
cpu.install()

_Batches = Iterator[tuple[dict[str, Any], torch.Tensor]]

_NAMED_WINDOWS = 4
"""Number of windows whose documents the message about a non-finite value names."""


class ExactTrainer(Trainer):
    """Trains on packed datasets with :class:`ExactLoss`.

    The windows, the weights of the loss and the tokenizer come from ``dataloader.dataset_path`` by default.
    """

    Config = RunConfig

    config: RunConfig
    dataloader: PackedDataLoader
    loss_fn: ExactLoss
    metrics_processor: ExposureMetrics
    checkpointer: ResumableCheckpoints
    validator: ExposureValidator

    clock: StepClock
    """Times the parts of the steps."""

    stop: StopAgreement
    """After ``stop.ask(…)``, :meth:`train` saves a checkpoint and raises :class:`Stopped` on all ranks."""

    windows_per_step: int
    """Windows of an optimizer step over all ranks."""

    average: WeightAverage | None
    """The moving average of the weights, with ``ema.decay``."""

    nonfinite: NonFiniteDetector
    """Finds losses and gradients that are NaN or infinite."""

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
        self.dataloader.rounds_per_step = self.gradient_accumulation_steps
        if self.dataloader.dp_world_size > 1:
            share_work(self.dataloader.mixture.datasets)
        self._shard = layout.sequence_shard(self.parallel_dims)
        self._counts_windows = layout.counts_windows(self.parallel_dims)
        self.loss_fn.to(self.device)
        self.loss_fn.shard = self._shard
        self.loss_fn.sums.counting = layout.counts_targets(self.parallel_dims)
        self.metrics_processor.exact_loss = self.loss_fn
        self.metrics_processor.sequence_shards = self._shard.count
        self.metrics_processor.count_flops(self.model_config, self.model_parts[0])
        self.clock = StepClock(self.device)
        self.checkpointer.clock = self.clock
        self.average = self._build_average()
        self.optimizers.register_step_post_hook(lambda *_: self.clock.end())
        self.windows_per_step = (
            self.gradient_accumulation_steps * self.dataloader.dp_world_size * self.dataloader.local_batch_size
        )
        self.metrics_processor.health = Health(
            self.clock,
            self.dataloader.imbalance,
            steps=config.training.steps,
            tokens_per_step=self.windows_per_step * config.training.seq_len,
        )
        self.nonfinite = NonFiniteDetector(self.device, self.gradient_accumulation_steps)
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
                print("\n".join(self._explain(found)), file=sys.stderr, flush=True)
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

    def _explain(self, found: NonFinite) -> Iterator[str]:
        """Yield the lines of the message: the value, the windows with their documents, the command for their text."""
        saved = self.checkpointer.saved_step
        yield (
            f"exact_titan.train: stopped: {found.what} at step {found.step}, seen after step {self.step}; "
            f"{f'the last checkpoint, of step {saved}, is from before' if saved else 'there is no checkpoint yet'}"
        )
        windows = [window for place in found.places if (window := self.dataloader.window_at(place)) is not None]
        for dataset, number in windows[:_NAMED_WINDOWS]:
            yield f"  {window_summary(dataset, number)}"
        if len(windows) > _NAMED_WINDOWS:
            more = ", ".join(f"{number} of {dataset.folder}" for dataset, number in windows[_NAMED_WINDOWS:])
            yield f"  and the windows {more}"
        for dataset, number in windows[:1]:
            yield f"  all text of the window: exact-titan window {dataset.folder} {number}"

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

    def batch_generator(
        self, data_iterable: Iterable[tuple[dict[str, Any], torch.Tensor]]
    ) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """Yield torchtitan's batches, and count their attention while the document borders are still on the host."""
        batches = super().batch_generator(data_iterable)
        while True:
            with self.clock.host("data"):
                input_dict, labels = next(batches)
            if self._counts_windows:
                self.metrics_processor.attention_pairs += attention_pairs(input_dict["cu_seqlens"].diff().tolist())
            else:  # torchtitan has counted the tokens
                self.metrics_processor.ntokens_since_last_log -= labels.numel()
            self.nonfinite.add_batch(self.dataloader.last_places)
            yield input_dict, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Prepare a batch as torchtitan does, with the loader's document borders. The device does not search them."""
        inputs, positions = input_dict["input"], input_dict["positions"]
        cu_seqlens = input_dict["cu_seqlens"]
        host_offsets = tuple(cu_seqlens.tolist()) if cu_seqlens.device.type == "cpu" else None
        masks = varlen_metadata(cu_seqlens, input_dict["max_seqlen"], host_offsets)
        if self._counts_windows:
            self.ntokens_seen += labels.numel()
        inputs, labels, positions = map(self._shard.of, (inputs, labels, positions))
        return inputs, labels, {"positions": positions, "attention_masks": masks}

    def forward_backward_step(self, **batch: Any) -> torch.Tensor:
        """Run one microbatch as torchtitan does: its places go to the loss, and its loss goes to the detector.

        The time after the last microbatch of a step belongs to the optimizer.

        Returns:
            The loss of this rank for the log. torchtitan adds up these losses over all ranks. Under context parallelism
            the loss is the mean over the ranks with the same windows, so that the maximum compares whole windows.
        """
        self.clock.begin("forward_backward")
        self.loss_fn.places_B = batch["input_dict"]["places"]
        loss = super().forward_backward_step(**batch)
        if isinstance(loss, DTensor):  # under tensor parallelism, with the same value on all ranks of a group
            loss = loss.full_tensor()
        self.nonfinite.add_loss(loss)
        if self._shard.count > 1 and self.metrics_processor.should_log(self.step):
            loss = funcol.all_reduce(loss.detach(), "sum", self.parallel_dims.get_mesh("cp")) / self._shard.count
        self.clock.begin("optimizer")
        return loss

    def train_step(self, data_iterator) -> None:
        """Run one optimizer step. A started weight refresh ends before it. A due weight refresh starts after it."""
        self.clock.steps += 1
        self.loss_fn.start_step()
        try:
            with self.nonfinite.step(self.step):
                super().train_step(self._with_divisor(data_iterator))
        except DataloaderExhaustedError:
            self.step -= 1  # torchtitan has counted the cancelled step
            raise
        except RuntimeError as error:
            # At a log step torchtitan checks the loss of all ranks.
            if str(error).startswith("Loss is not finite"):
                self.nonfinite.check()
            raise
        self.loss_fn.end_step(self.step)
        if self._progress is not None:
            self._progress.update()

    def _with_divisor(self, batches: _Batches) -> _Batches:
        """Return the batches of the step. Give a rule with a weighted divisor its divisor, before the first microbatch.

        A collective under such a rule. The ranks are the ranks of torchtitan's ``global_valid_tokens``.
        """
        if not self.loss_fn.rule.weighted_divisor:
            return batches
        step = [next(batches) for _ in range(self.gradient_accumulation_steps)]
        total = self.loss_fn.weight_sum(step)
        if self.parallel_dims.dp_enabled:
            total = dist_utils.dist_sum_tensor(total, self.parallel_dims.get_mesh("batch"))
        self.loss_fn.divisor = total.to(torch.float32)
        return iter(step)

    def _tokens(self) -> int:
        """Return the tokens of the run so far, over all ranks. A collective call."""
        tokens = torch.tensor(self.ntokens_seen, device=self.device)
        dist.all_reduce(tokens)
        return int(tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's trainer state, the tokens of all ranks, and the state of the loss. A collective call."""
        return {**super().state_dict(), "ntokens_seen": self._tokens(), "exposure": self.loss_fn.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Each rank counts its own tokens. The saved number is the sum over the ranks.
        share, rest = divmod(state_dict["ntokens_seen"], dist.get_world_size())
        self.ntokens_seen = share + (dist.get_rank() < rest)
        self.checkpointer.saved_step = self.step
        self.loss_fn.load_state_dict(state_dict["exposure"])

    def close(self) -> None:
        if hasattr(self, "stop"):
            self.stop.close()
        super().close()
