"""torchtitan's metrics with exposure, weight and plain cross-entropy per bucket of effective context."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torchtitan.components.metrics import LoggerContainer, MetricsProcessor, TensorBoardLogger
from torchtitan.models.common.decoder import Decoder
from torchtitan.tools.logging import logger

from exact_titan.exposure import tail_mass
from exact_titan.titan.health import Health
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.flops import attention_flops, attention_shape, matmul_flops_per_token

_CHARTS = {
    "Loss by effective context": {
        "training": ["Multiline", [r"loss_by_context/\d+-\d+"]],
        "validation": ["Multiline", [r"validation_loss_by_context/\d+-\d+"]],
    },
    "Exposure": {
        "share of targets": ["Multiline", [r"exposure/share/\d+-\d+"]],
        "weight of a target": ["Multiline", [r"exposure/weight/\d+-\d+"]],
    },
    "Seconds a step": {"on the slowest rank": ["Multiline", [r"step_time/.*"]]},
}


def by_context(sums_2n: torch.Tensor, labels: list[str], tag: str) -> dict[str, float]:
    """``tag/<lo>-<hi>``: mean plain cross-entropy of each bucket that has targets.

    Args:
        sums_2n: float64 ``[2, n]`` on the host, cross-entropy sums and target counts (:class:`BucketSums`).
        labels: ``<lo>-<hi>`` of the n buckets.
    """
    ce_n, count_n = sums_2n.tolist()
    return {f"{tag}/{label}": ce / count for label, ce, count in zip(labels, ce_n, count_n, strict=True) if count}


class ExposureMetrics(MetricsProcessor):
    """torchtitan's metrics and, at every log step, these values over the steps since the last log step:

    ========================================  ==================================================================
    ``loss_metrics/cross_entropy``            plain cross-entropy of all targets; compare runs by this value
    ``loss_by_context/<lo>-<hi>``             plain cross-entropy of the bucket's targets
    ``exposure/share/<lo>-<hi>``              share of the supervised targets
    ``exposure/weight/<lo>-<hi>``             weight of a target
    ``exposure/tail_loss_mass``               share of the loss mass in the tail
    ``step_time/``, ``imbalance/``,           the scalars of :class:`Health`
    ``progress/``
    ========================================  ==================================================================

    torchtitan's ``loss_metrics/global_avg_loss`` is the weighted loss of the log step alone. torchtitan's ``tflops``
    and ``mfu(%)`` are per device. Here these two values count the attention inside the documents of all ranks.
    torchtitan itself counts full windows, without a mask.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    health: Health
    """Set by the trainer, because torchtitan builds the metrics first."""

    exact_loss: ExactLoss
    """Set by the trainer, because torchtitan builds the metrics before the loss."""

    attention_pairs: int
    """Query-key pairs of this rank's documents since the last log step. The trainer counts them."""

    writers: list[SummaryWriter]
    """The TensorBoard files that this rank writes."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
        # Only a terminal shows colours. A log file would get the escape codes.
        config.disable_color_printing = config.disable_color_printing or not sys.stdout.isatty()
        super().__init__(config, **kwargs)
        self.attention_pairs = 0

    def count_flops(self, config: Decoder.Config, model: nn.Module) -> None:
        """Take the sizes of the model for the FLOPs of a step. ``model`` is built from ``config``."""
        self.matmul_flops_per_token = matmul_flops_per_token(config, model)
        self.attention_shape = attention_shape(config)

    def _build_metric_logger(self, **kwargs: Any):
        built = super()._build_metric_logger(**kwargs)
        loggers = built._loggers if isinstance(built, LoggerContainer) else []
        self.writers = [one.writer for one in loggers if isinstance(one, TensorBoardLogger)]
        for writer in self.writers:
            writer.add_custom_scalars(_CHARTS)
        return built

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Log as torchtitan does. Every rank calls this method, because it adds up the bucket sums of all ranks."""
        loss = self.exact_loss
        extra_m = torch.tensor(
            [self.ntokens_since_last_log, self.attention_pairs, *self.health.local_times()],
            dtype=torch.float64,
            device=loss.sums.sums_2n.device,
        )
        sums_2n, summed_m = (summed.cpu() for summed in loss.sums.take_with(extra_m))
        tokens, pairs, *times = summed_m.tolist()
        # torchtitan multiplies this by the tokens per second.
        attention_per_token = attention_flops(int(pairs), **self.attention_shape) / tokens
        self.num_flops_per_token = self.matmul_flops_per_token + attention_per_token
        ce, count = sums_2n.sum(dim=1).tolist()
        cross_entropy = ce / count if count else float("nan")
        counts_n, weights_n = sums_2n[1], loss.weights_n.cpu()
        mass = tail_mass(counts_n, weights_n, loss.buckets.lower_bounds, threshold=loss.threshold)
        labels = loss.buckets.labels()
        metrics = by_context(sums_2n, labels, "loss_by_context")
        metrics |= {
            f"exposure/share/{label}": n / count for label, n in zip(labels, counts_n.tolist(), strict=True) if count
        }
        metrics |= {f"exposure/weight/{label}": w for label, w in zip(labels, weights_n.tolist(), strict=True)}
        metrics |= {"exposure/tail_loss_mass": mass, "loss_metrics/cross_entropy": cross_entropy}
        health = self.health.scalars(step, times)
        metrics |= health
        super().log(step, global_avg_loss, global_max_loss, grad_norm, {**(extra_metrics or {}), **metrics})
        self.attention_pairs = 0
        hours = health.get("progress/hours_left")
        left = "" if hours is None else f"  left: {hours:,.2f} h"
        logger.info(f"step: {step:2}  cross entropy: {cross_entropy:8.5f}  tail's loss mass: {mass:.1%}{left}")

    def log_validation(self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None) -> None:
        """Log as torchtitan does. torchtitan restarts its count of tokens and time here."""
        super().log_validation(loss, step, extra_metrics)
        self.attention_pairs = 0
