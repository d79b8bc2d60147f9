"""torchtitan's trainer with EXACT: varlen metadata from the host, weights that refresh and are checkpointed."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.components.checkpointer import BaseCheckpointManager
from torchtitan.components.dataloader import BaseDataLoader, DataloaderExhaustedError
from torchtitan.components.loss import BaseLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.validate import Validator
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from exact_titan.reports.window import window_summary
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.finite import FiniteWatch, NotFinite
from exact_titan.titan.health import Health
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.activation_checkpoint import ActivationCheckpointingConfig, AttentionSavingAC
from exact_titan.titan.model.attention import Implementation, varlen_metadata
from exact_titan.titan.model.decoder import LlamaSizes
from exact_titan.titan.model.flops import attention_pairs
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.preflight import complete, packed_tokenizer
from exact_titan.titan.start import keep_model_folder
from exact_titan.titan.step_clock import StepClock
from exact_titan.titan.stop import StopAgreement, Stopped
from exact_titan.titan.validate import ExposureValidator

_EXPLAINED = 4
"""Windows whose documents are named when a run ends with a loss that is not finite."""


class ExactTrainer(Trainer):
    """Trains on a packed dataset with :class:`ExactLoss`.

    The windows, the weights and the tokenizer all come from ``dataloader.dataset_path``, unless an option says so.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        model: str = ""
        """Hugging Face folder to start from: config.json, safetensors, tokenizer. Empty: from scratch, or the model of
        start_from. It takes the place of a recipe's own model_spec."""

        start_from: str = ""
        """Output folder of the stage before: start from its last checkpoint's weights. {rule} stands for loss.rule."""

        export: str = ""
        """New folder for the final weights in Hugging Face's format; empty: none. {rule} stands for loss.rule."""

        architecture: LlamaSizes = field(default_factory=LlamaSizes)
        """Sizes of a model from scratch."""

        attention: Implementation = "auto"
        """Attention kernel: fa3 (FlashAttention 3, Hopper), fa2 (the flash-attn package) or torch (torch's own); auto:
        the first of these that is there, and torch's SDPA on the CPU."""

        hf_assets_path: str = ""
        """Folder of the tokenizer; empty: the copy in the packed dataset."""

        dataloader: BaseDataLoader.Config = field(default_factory=PackedDataLoader.Config)
        loss: BaseLoss.Config = field(default_factory=ExactLoss.Config)
        metrics: MetricsProcessor.Config = field(default_factory=ExposureMetrics.Config)
        validator: Validator.Config = field(default_factory=ExposureValidator.Config)
        checkpoint: BaseCheckpointManager.Config = field(default_factory=ResumableCheckpoints.Config)
        optimizer: OptimizersContainer.Config = field(default_factory=AdamW.Config)
        activation_checkpoint: ActivationCheckpointingConfig = field(default_factory=AttentionSavingAC.Config)

    config: Config
    dataloader: PackedDataLoader
    loss_fn: ExactLoss
    metrics_processor: ExposureMetrics
    checkpointer: ResumableCheckpoints
    validator: ExposureValidator

    clock: StepClock
    """Times the parts of the steps."""

    stop: StopAgreement
    """Ask it to stop, and :meth:`train` saves and raises :class:`Stopped` on all ranks."""

    finite: FiniteWatch
    """Watches losses and gradients."""

    def __init__(self, config: Config) -> None:
        config = complete(config)
        super().__init__(config)
        if dist.get_rank() == 0:
            keep_model_folder(config, dataset_tokenizer=packed_tokenizer(config))
        self.dataloader.rounds_per_step = self.gradient_accumulation_steps
        self.loss_fn.to(self.device)
        self.metrics_processor.exact_loss = self.loss_fn
        self.metrics_processor.count_flops(self.model_config, self.model_parts[0])
        self.clock = StepClock(self.device)
        self.checkpointer.clock = self.clock
        self.optimizers.register_step_post_hook(lambda *_: self.clock.end())
        windows = self.gradient_accumulation_steps * self.dataloader.dp_world_size * self.dataloader.local_batch_size
        self.metrics_processor.health = Health(
            self.clock,
            self.dataloader.imbalance,
            steps=config.training.steps,
            tokens_per_step=windows * config.training.seq_len,
        )
        self.finite = FiniteWatch(self.device, self.gradient_accumulation_steps)
        self.checkpointer.before_save = self.finite.check
        self.stop = StopAgreement.of_process_group(Path(config.dump_folder))
        if config.validator.enable:
            self.validator.stop = self.stop
            self.validator.done = self.checkpointer.mark_validated
        self._resumed = False

    def train(self) -> None:
        """Train to the last step, from the last complete checkpoint if there is one.

        Raises:
            Stopped: on all ranks after the same step, when :attr:`stop` was asked to; all is saved then.
            NotFinite: on all ranks, when a loss or the gradient is NaN or infinite; nothing of that is saved.
        """
        try:
            self._train()
        except NotFinite as fault:
            self.checkpointer.maybe_wait_for_saving()
            if dist.get_rank() == 0:
                print("\n".join(self._explain(fault)), file=sys.stderr, flush=True)
            raise

    def _train(self) -> None:
        try:
            self.stop.check()
            super().train()
            self.finite.check()
            if 0 < self.step < self.config.training.steps:  # the data are at their end
                self.checkpointer.save_now(self.step)
            self.checkpointer.maybe_wait_for_saving()
        except Stopped as stopped:
            self.finite.check()
            if self.step == 0:
                logger.info(f"{stopped.reason}: stopped before the first step, there is nothing to save")
            elif self.checkpointer.save_now(self.step):
                logger.info(f"{stopped.reason}: stopped after step {self.step} and saved; run me again to go on")
            else:
                raise RuntimeError(
                    f"{stopped.reason}: stopped after step {self.step}, and nothing is saved: checkpointing is off"
                ) from None
            raise

    def _explain(self, fault: NotFinite) -> Iterator[str]:
        """What was not finite, in which windows of which documents, and what to do."""
        saved = self.checkpointer.saved_step
        yield (
            f"exact_titan.train: stopped: {fault.what} at step {fault.step}, seen after step {self.step}; "
            f"{f'the last checkpoint, of step {saved}, is from before' if saved else 'there is no checkpoint yet'}"
        )
        windows = [found for place in fault.places if (found := self.dataloader.window_at(place)) is not None]
        for dataset, number in windows[:_EXPLAINED]:
            yield f"  {window_summary(dataset, number)}"
        if len(windows) > _EXPLAINED:
            more = ", ".join(f"{number} of {dataset.folder}" for dataset, number in windows[_EXPLAINED:])
            yield f"  and the windows {more}"
        for dataset, number in windows[:1]:
            yield f"  all of its text: exact-titan window {dataset.folder} {number}"

    def should_continue_training(self) -> bool:
        """As torchtitan's, and a point to stop at before every step.

        A resumed run first makes up for the validation that the checkpoint's step had, if that was broken off.
        """
        if self._resumed:
            self._resumed = False
            due = self.config.validator.enable and self.validator.should_validate(self.step)
            if due and not self.checkpointer.is_validated(self.step):
                self.validator.validate(self.model_parts, self.step)
        more = super().should_continue_training()
        if more:
            if (seen := self.finite.seen()) is not None:
                self.stop.ask(seen)
            self.stop.check()
        return more

    def batch_generator(
        self, data_iterable: Iterable[tuple[dict[str, Any], torch.Tensor]]
    ) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """torchtitan's batches; the attention in them is counted here, while the documents' borders are on the host."""
        batches = super().batch_generator(data_iterable)
        while True:
            with self.clock.host("data"):
                input_dict, labels = next(batches)
            self.metrics_processor.attention_pairs += attention_pairs(input_dict["cu_seqlens"].diff().tolist())
            self.finite.add_batch(self.dataloader.last_places)
            yield input_dict, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """As torchtitan's, with the document borders that the loader knew: no search for them on the device."""
        inputs, positions = input_dict["input"], input_dict["positions"]
        cu_seqlens = input_dict["cu_seqlens"]
        host_offsets = tuple(cu_seqlens.tolist()) if cu_seqlens.device.type == "cpu" else None
        masks = varlen_metadata(cu_seqlens, input_dict["max_seqlen"], host_offsets)
        self.ntokens_seen += labels.numel()
        return inputs, labels, {"positions": positions, "attention_masks": masks}

    def forward_backward_step(self, **batch: Any) -> torch.Tensor:
        """As torchtitan's; the loss is watched, and what follows a step's last one is the optimizer's time."""
        self.clock.begin("forward_backward")
        loss = super().forward_backward_step(**batch)
        self.finite.add_loss(loss)
        self.clock.begin("optimizer")
        return loss

    def train_step(self, data_iterator) -> None:
        """One optimizer step, between the two halves of a weight refresh."""
        self.clock.steps += 1
        self.loss_fn.start_step()
        try:
            with self.finite.step(self.step):
                super().train_step(data_iterator)
        except DataloaderExhaustedError:
            self.step -= 1  # torchtitan cancels the step, and goes on as if it had been done
            raise
        except RuntimeError as error:
            # torchtitan looks at the loss of all ranks where it logs.
            if str(error).startswith("Loss is not finite"):
                self.finite.check()
            raise
        self.loss_fn.end_step(self.step)

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's trainer state, its tokens of all ranks, and the loss's weights and counters: a collective."""
        tokens = torch.tensor(self.ntokens_seen, device=self.device)
        dist.all_reduce(tokens)
        return {**super().state_dict(), "ntokens_seen": int(tokens), "exposure": self.loss_fn.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Each rank counts its own; all together go on from the saved number.
        share, rest = divmod(state_dict["ntokens_seen"], dist.get_world_size())
        self.ntokens_seen = share + (dist.get_rank() < rest)
        self.checkpointer.saved_step = self.step
        self.loss_fn.load_state_dict(state_dict["exposure"])
        self._resumed = True

    def close(self) -> None:
        if hasattr(self, "stop"):
            self.stop.close()
        super().close()
