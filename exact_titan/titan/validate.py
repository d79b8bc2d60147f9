"""Validation on packed windows: plain cross-entropy, in total and per bucket of effective context."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.validate import Validator
from torchtitan.tools.logging import logger

from exact_titan.reports.figures import Bars, bucket_figure
from exact_titan.runs.records import ValidationSet
from exact_titan.titan.console import FILE_ONLY
from exact_titan.titan.cross_entropy import BucketSums
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics, Validated
from exact_titan.titan.stop import StopAgreement
from exact_titan.titan.target_losses import TargetFiles, TargetSums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TAG = "validation_loss_by_context"


class ExposureValidator(Validator):
    """torchtitan's validator with the plain cross-entropy per bucket, and a figure of these values for TensorBoard.

    torchtitan's validator does not pass the positions to the loss. This validator keeps the positions of each batch for
    the loss.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: BaseDataLoader.Config = field(
            default_factory=lambda: PackedDataLoader.Config(split="val", infinite=False)
        )

        keep_targets: int = 2
        """Number of validations whose cross-entropy of every target stays in <dump_folder>/validation, counted from
        the last validation. 0: none. A target takes 17 bytes. exact-titan compare needs these files for its errors."""

        def __post_init__(self) -> None:
            # torchtitan's message names no option.
            if self.steps < 1 and self.steps != -1:
                raise ValueError(f"validator.steps is {self.steps}: it must be 1 or more, or -1 for all windows")

    stop: StopAgreement
    """Set by the trainer, because torchtitan builds the validator first."""

    on_validated: Callable[[int], None]
    """Called with the step after a complete validation. Set by the trainer."""

    def __init__(
        self, config: Config, *, loss_fn: ExactLoss, metrics_processor: ExposureMetrics, **kwargs: Any
    ) -> None:
        # With steps = -1 torchtitan warns that ranks may have different numbers of batches. The packed dataloader gives
        # every rank the same number.
        silent = copy.copy(config)
        silent.steps = 1
        super().__init__(silent, loss_fn=self._measure, metrics_processor=metrics_processor, **kwargs)
        self.config = config
        self.exact_loss = loss_fn
        self.metrics_processor: ExposureMetrics = metrics_processor
        # The validator moves the whole batch to the device. A read of max_seqlen would then wait for the device.
        self.dl_config: BaseDataLoader.Config = replace(
            config.dataloader, infinite=config.steps != -1, varlen_metadata=False
        )
        self._positions: torch.Tensor | None = None
        loader = self._windows()
        self.windows = None if loader is None else self._validation_set(loader)
        self._target_files = None
        if loader is not None and self.windows is not None and config.keep_targets:
            self._target_files = TargetFiles(metrics_processor.run, loader, self.windows, keep=config.keep_targets)
        metrics_processor.finish_validation = self._finish

    def should_validate(self, step: int) -> bool:
        """Return whether a validation follows the step: every ``freq`` steps. torchtitan adds the first step."""
        return step % self.config.freq == 0

    def post_dataloading_process(self, input_dict, labels, model_parts):
        """Prepare a batch as torchtitan does, and keep its positions for the loss. A requested stop happens here."""
        self.stop.check()
        self._positions = input_dict["positions"]
        return super().post_dataloading_process(input_dict, labels, model_parts)

    def _measure(self, pred: torch.Tensor, labels: torch.Tensor):
        assert self._positions is not None
        measured = self.exact_loss.measure(pred, labels, self._positions, self.sums)
        if isinstance(self.sums, TargetSums):
            self.sums.end_batch()
        return measured

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Validate on the validation windows and log the result. Every rank calls this method."""
        logger.info("Validating", extra=FILE_ONLY)
        self._begun = time.perf_counter()
        self._step = step
        self.sums = self._sums()
        super().validate(model_parts, step)
        self.metrics_processor.add_figure(_TAG, lambda: self._figure(step), step)
        self.on_validated(step)

    def _finish(self) -> Validated:
        """Return the result over all ranks, and write the file of the targets.

        torchtitan calls the metrics at the end of a validation.
        """
        self._result = self.sums.take().cpu()
        if self._target_files is not None and isinstance(self.sums, TargetSums) and dist.get_rank() == 0:
            threshold = self.exact_loss.threshold
            self._target_files.write(self.sums, step=self._step, threshold=threshold, weights="last")
        windows = self.windows
        tokens = int(self._result[1].sum()) if windows is None else windows.windows * windows.window
        return Validated(self._result, windows, tokens, time.perf_counter() - self._begun)

    def _sums(self) -> BucketSums:
        n, device = len(self.exact_loss.buckets), self.exact_loss.weights_n.device
        return BucketSums(n, device) if self._target_files is None else TargetSums(n, device)

    def _windows(self) -> PackedDataLoader | None:
        """Return a dataloader that knows the window at every place. None for a dataloader of another package."""
        if not isinstance(self.dl_config, PackedDataLoader.Config):
            return None
        return self.dl_config.build(dp_world_size=1, dp_rank=0, seq_len=self.seq_len, local_batch_size=1)

    def _validation_set(self, loader: PackedDataLoader) -> ValidationSet:
        assert isinstance(loader.config, PackedDataLoader.Config)
        windows = loader.order.places
        if windows is None:
            windows = self.config.steps * self.dp_world_size * self.local_batch_size
        seed = loader.config.seed if loader.order.shuffled else None
        mixture = loader.mixture
        return ValidationSet(mixture.fingerprint, mixture.split, mixture.window, windows, seed)

    def _figure(self, step: int) -> "Figure":
        ce_n, count_n = self._result.tolist()
        rows = [row for row in zip(self.exact_loss.buckets.labels(), ce_n, count_n, strict=True) if row[2]]
        means = [ce / count for _, ce, count in rows]
        bars = Bars("cross-entropy (nats)", {f"step {step}": means}, "%.3f", from_zero=False, first_color=1)
        return bucket_figure(
            [label for label, _, _ in rows],
            [bars],
            threshold=self.exact_loss.threshold,
            title=f"Plain cross-entropy on the validation windows, step {step}",
        )
