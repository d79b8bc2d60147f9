"""Validation on packed windows: plain cross-entropy, in total and per bucket of effective context."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.validate import Validator
from torchtitan.tools.logging import logger

from exact_titan.reports.figures import Bars, bucket_figure
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import BucketSums, ExactLoss
from exact_titan.titan.metrics import ExposureMetrics, by_context
from exact_titan.titan.stop import StopAgreement

_TAG = "validation_loss_by_context"


class ExposureValidator(Validator):
    """torchtitan's validator with the plain cross-entropy per bucket.

    torchtitan's validator does not pass the positions to the loss. This validator keeps the positions of each batch for
    the loss. This validator writes ``validation_loss_by_context/<lo>-<hi>`` and a figure of these values, in addition
    to torchtitan's ``validation_metrics/loss``.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: BaseDataLoader.Config = field(
            default_factory=lambda: PackedDataLoader.Config(split="val", infinite=False)
        )

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
        return self.exact_loss.measure(pred, labels, self._positions, self.sums)

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Validate on the validation windows and log the result. Every rank calls this method."""
        buckets = self.exact_loss.buckets
        logger.info("Validating")
        self.sums = BucketSums(len(buckets), self.exact_loss.weights_n.device)
        super().validate(model_parts, step)
        sums_2n = self.sums.take().cpu()
        metrics = by_context(sums_2n, buckets.labels(), _TAG)
        self.metrics_processor.logger.log(metrics, step)
        for writer in self.metrics_processor.writers:
            figure = bucket_figure(
                [tag.removeprefix(f"{_TAG}/") for tag in metrics],
                [
                    Bars(
                        "cross-entropy (nats)",
                        {f"step {step}": list(metrics.values())},
                        "%.3f",
                        from_zero=False,
                        first_color=1,
                    )
                ],
                threshold=self.exact_loss.threshold,
                title=f"Plain cross-entropy on the validation windows, step {step}",
            )
            writer.add_figure(_TAG, figure, step)
        self.on_validated(step)
