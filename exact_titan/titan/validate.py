"""Validation on packed windows: plain cross-entropy, in total and per bucket of effective context.

1. One pass of torchtitan's validator over the validation windows measures every target with its whole context.
2. One further pass per K of ``context_gain`` measures the targets with the context of pieces of K tokens
   (:mod:`exact_titan.titan.context_gain`).
3. The results of all passes are one record (:meth:`ExposureMetrics.log_validated`).
4. With ``ema.decay`` the same passes follow with the moving average of the weights. They are a second record.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.validate import Validator
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.attention import VarlenMetadata
from torchtitan.tools.logging import logger

from exact_titan.exposure import effective_context
from exact_titan.reports.figures import Bars, bucket_figure
from exact_titan.runs.records import ValidationSet, Weights
from exact_titan.titan.console import FILE_ONLY, of_weights
from exact_titan.titan.context_gain import Cells, cut
from exact_titan.titan.cross_entropy import BucketSums
from exact_titan.titan.ema import WeightAverage
from exact_titan.titan.layout import counts_targets, sequence_shard
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics, Validated
from exact_titan.titan.model.attention import varlen_metadata
from exact_titan.titan.model.context_parallel import WithoutContextParallel
from exact_titan.titan.stop import StopAgreement
from exact_titan.titan.target_losses import TargetFiles, TargetSums
from exact_titan.titan.trackers import group_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExposureValidator(Validator):
    """torchtitan's validator with the plain cross-entropy per bucket, and a figure of these values for TensorBoard.

    torchtitan's validator does not pass the positions to the loss. This validator keeps the effective contexts of each
    batch for the loss.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: BaseDataLoader.Config = field(
            default_factory=lambda: PackedDataLoader.Config(split="val", infinite=False)
        )

        keep_targets: int = 2
        """Number of validations whose cross-entropy of every target stays in <dump_folder>/validation, counted from
        the last validation. 0: none. A target takes 17 bytes. exact-titan compare needs these files for its errors."""

        context_gain: list[int] = field(default_factory=list)
        """Lengths K in tokens, such as 1024,4096. Every validation also measures what the targets of the tail gain from
        the context beyond K: one more pass per K over the same windows, with every document cut into pieces of K."""

        def __post_init__(self) -> None:
            # torchtitan's message names no option.
            if self.steps < 1 and self.steps != -1:
                raise ValueError(f"validator.steps is {self.steps}: it must be 1 or more, or -1 for all windows")

    stop: StopAgreement
    """Set by the trainer, because torchtitan builds the validator first."""

    average: WeightAverage | None = None
    """The moving average of the weights. Set by the trainer."""

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
        dims: ParallelDims = kwargs["parallel_dims"]
        self._shard = sequence_shard(dims)
        self._counting = counts_targets(dims)
        # torchtitan prepares the whole windows, and this class divides them.
        self.parallel_dims = cast(ParallelDims, WithoutContextParallel(dims))
        self.exact_loss = loss_fn
        self.metrics_processor: ExposureMetrics = metrics_processor
        # The validator moves the whole batch to the device. A read of max_seqlen would then wait for the device.
        self.dl_config: BaseDataLoader.Config = replace(
            config.dataloader, infinite=config.steps != -1, varlen_metadata=False
        )
        self.cells = Cells(loss_fn.buckets, config.context_gain)
        self._cell_BL: torch.Tensor | None = None
        self._piece: int | None = None
        loader = self._windows()
        self.windows = None if loader is None else self._validation_set(loader)
        self._target_files = None
        if loader is not None and self.windows is not None and config.keep_targets:
            self._target_files = TargetFiles(metrics_processor.run, loader, self.windows, keep=config.keep_targets)

    def should_validate(self, step: int) -> bool:
        """Return whether a validation follows the step: every ``freq`` steps. torchtitan adds the first step."""
        return step % self.config.freq == 0

    def post_dataloading_process(self, input_dict, labels, model_parts):
        """Prepare a batch as torchtitan does, and keep the cells of its targets for the loss.

        The model gets the positions of the pieces in a pass over pieces. The cells are those of the whole context. A
        requested stop happens here.
        """
        self.stop.check()
        positions = input_dict["positions"]
        self._cell_BL = self._shard.of(self.cells.index(effective_context(positions)))
        if self._piece is not None:
            input_dict = {**input_dict, "positions": cut(positions, self._piece)}
        inputs, labels, model_inputs = super().post_dataloading_process(input_dict, labels, model_parts)
        model_inputs["positions"] = self._shard.of(model_inputs["positions"])
        masks = model_inputs.get("attention_masks")
        if isinstance(masks, VarlenMetadata):
            model_inputs["attention_masks"] = varlen_metadata(masks.cu_seq_q, masks.max_q)
        return self._shard.of(inputs), self._shard.of(labels), model_inputs

    def _measure(self, pred: torch.Tensor, labels: torch.Tensor):
        assert self._cell_BL is not None
        measured = self.exact_loss.measure(pred, labels, self._cell_BL, self.sums)
        if isinstance(self.sums, TargetSums):
            self.sums.end_batch()
        return measured

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Validate on the validation windows and log the result. Every rank calls this method."""
        self._validate(model_parts, step, "last")
        if self.average is not None:
            with self.average.in_model():
                self._validate(model_parts, step, "ema")
        self.on_validated(step)

    def _validate(self, model_parts: list[nn.Module], step: int, weights: Weights) -> None:
        n, device = len(self.cells), self.exact_loss.weights_n.device
        threshold = self.exact_loss.threshold
        if self._target_files is None:
            sums = BucketSums(n, device, counting=self._counting)
        else:
            sums = TargetSums(n, device, dims=self.parallel_dims)
        begun = time.perf_counter()
        whole_2c = self._pass(model_parts, step, sums)
        if self._target_files is not None and isinstance(sums, TargetSums) and dist.get_rank() == 0:
            self._target_files.write(sums, step=step, threshold=threshold, weights=weights)
        sums_2n = self.cells.by_bucket(whole_2c)
        windows = self.windows
        tokens = int(sums_2n[1].sum()) if windows is None else windows.windows * windows.window
        seconds = time.perf_counter() - begun
        gains = {}
        for piece in self.config.context_gain:
            begun = time.perf_counter()
            pieces_2c = self._pass(model_parts, step, BucketSums(n, device, counting=self._counting), piece)
            spent = time.perf_counter() - begun
            gains[str(piece)] = self.cells.gain(whole_2c, pieces_2c, piece=piece, threshold=threshold, seconds=spent)
        self.metrics_processor.log_validated(step, Validated(weights, sums_2n, gains, windows, tokens, seconds))
        tag = f"{group_of(weights)}_loss_by_context"
        self.metrics_processor.add_figure(tag, lambda: self._figure(step, sums_2n, weights), step)

    def _pass(
        self, model_parts: list[nn.Module], step: int, sums: BucketSums, piece: int | None = None
    ) -> torch.Tensor:
        """Run the model over all validation windows, and return the sums per cell over all ranks, on the host.

        Args:
            sums: empty sums per cell of this rank.
            piece: length of the pieces in tokens. None: the whole context.
        """
        of = "" if piece is None else f" in pieces of {piece} tokens"
        logger.info(f"Validating{of}", extra=FILE_ONLY)
        self.sums, self._piece = sums, piece
        super().validate(model_parts, step)
        return sums.take().cpu()

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
        return ValidationSet(loader.order.fingerprint, mixture.split, mixture.window, windows, seed)

    def _figure(self, step: int, sums_2n: torch.Tensor, weights: Weights) -> "Figure":
        ce_n, count_n = sums_2n.tolist()
        rows = [row for row in zip(self.exact_loss.buckets.labels(), ce_n, count_n, strict=True) if row[2]]
        means = [ce / count for _, ce, count in rows]
        bars = Bars("cross-entropy (nats)", {f"step {step}": means}, "%.3f", from_zero=False, first_color=1)
        return bucket_figure(
            [label for label, _, _ in rows],
            [bars],
            threshold=self.exact_loss.threshold,
            title=f"Plain cross-entropy on the validation windows, step {step}{of_weights(weights)}",
        )
