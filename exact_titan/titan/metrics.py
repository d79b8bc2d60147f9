"""The values of a log step and of a validation, with exposure, weight and plain cross-entropy per bucket.

1. :meth:`ExposureMetrics.log` and :meth:`ExposureMetrics.log_validation` collect the values of all ranks as one record
   (:mod:`exact_titan.runs.records`).
2. Rank 0 passes the record to the console, to ``metrics.jsonl``, and to TensorBoard and W&B.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.components.metrics import BaseLogger, MetricsProcessor
from torchtitan.models.common.decoder import Decoder
from torchtitan.tools import utils
from torchtitan.tools.logging import logger

from exact_titan.exposure import tail_mass
from exact_titan.runs.metrics_log import MetricsLog
from exact_titan.runs.records import (
    ContextGain,
    ContextLosses,
    Memory,
    Record,
    TrainRecord,
    ValidationRecord,
    ValidationSet,
    Weights,
)
from exact_titan.system.file_errors import input_error, why
from exact_titan.titan.console import train_line, validation_lines
from exact_titan.titan.health import Health
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.flops import attention_flops, attention_shape, matmul_flops_per_token
from exact_titan.titan.trackers import TensorBoard, WandB, scalars

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Validated:
    """The result of a validation with one set of weights, over all ranks.

    Attributes:
        weights: the weights that are validated.
        sums_2n: float64 ``[2, n]`` on the host, cross-entropy sums and target counts (:class:`BucketSums`).
        context_gain: the context gain by K.
        windows: the validation windows, if they are windows of packed datasets.
        tokens: tokens of the pass with the whole context.
        seconds: duration of that pass.
    """

    weights: Weights
    sums_2n: torch.Tensor
    context_gain: dict[str, ContextGain]
    windows: ValidationSet | None
    tokens: int
    seconds: float


class ExposureMetrics(MetricsProcessor):
    """torchtitan's metrics, and exposure, weight and plain cross-entropy per bucket since the last log step.

    torchtitan counts full windows without a mask in ``tflops`` and MFU. Here these two values count the attention
    inside the documents of all ranks. Like torchtitan, the class restarts the count of tokens and time after a
    validation.
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

    def __init__(self, config: Config, *, dump_folder: str, **kwargs: Any) -> None:
        # The lines of torchtitan go into the log file, which shows the codes of colours as escapes.
        config.disable_color_printing = True
        super().__init__(config, dump_folder=dump_folder, **kwargs)
        self.attention_pairs = 0
        self._first = dist.get_rank() == 0
        self.run = Path(dump_folder)
        self._metrics_log = MetricsLog(self.run)
        self._warned: set[str] = set()

    def _build_metric_logger(
        self, *, config: MetricsProcessor.Config, dump_folder: str, config_dict: dict | None = None, **kwargs: Any
    ) -> BaseLogger:
        """Replace torchtitan's loggers, whose folder has the time of the start in its name."""
        rank, run = dist.get_rank(), Path(dump_folder)
        folder = run / config.save_tb_folder
        self._trackers: list[TensorBoard | WandB] = []
        if config.enable_tensorboard and (rank == 0 or config.save_for_all_ranks):
            self._trackers.append(TensorBoard(folder / f"rank_{rank}" if config.save_for_all_ranks else folder))
        if config.enable_wandb and rank == 0:
            self._trackers.append(WandB(run, config_dict))
        return BaseLogger()

    def begin(self, step: int, *, validated: bool) -> None:
        """Start the logs of a run whose next step is ``step + 1``. Every rank calls this method.

        Args:
            step: the step of the loaded checkpoint. 0: a new run.
            validated: whether the validation of ``step`` has finished.
        """
        if self._first and (moved := self._metrics_log.begin(step, validated=validated)):
            logger.warning(moved)
        for tracker in self._trackers:
            tracker.begin(step, self.exact_loss.buckets.labels())

    def count_flops(self, config: Decoder.Config, model: nn.Module) -> None:
        """Take the sizes of the model for the FLOPs of a step. ``model`` is built from ``config``."""
        self.matmul_flops_per_token = matmul_flops_per_token(config, model)
        self.attention_shape = attention_shape(config)

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Log a step. Every rank calls this method, because it adds up the sums of all ranks.

        Args:
            extra_metrics: torchtitan's tokens of all ranks, ``n_tokens_seen``, and learning rates, ``lr/<name>``.
        """
        loss, extra = self.exact_loss, extra_metrics or {}
        own_m = torch.tensor(
            [self.ntokens_since_last_log, self.attention_pairs, *self.health.local_times()],
            dtype=torch.float64,
            device=loss.sums.sums_2n.device,
        )
        extra_m = torch.cat([own_m, loss.take_weight_sums()])
        sums_2n, summed_m = (summed.cpu() for summed in loss.sums.take_with(extra_m))
        (tokens, pairs, *times), weight_sums_n = summed_m[: len(own_m)].tolist(), summed_m[len(own_m) :]
        seconds = time.perf_counter() - self.time_last_log
        self.num_flops_per_token = (
            self.matmul_flops_per_token + attention_flops(int(pairs), **self.attention_shape) / tokens
        )
        flops = self.num_flops_per_token * tokens / seconds / dist.get_world_size()
        weights_n = loss.mean_weights(sums_2n[1], weight_sums_n)
        labels, bounds = loss.buckets.labels(), loss.buckets.lower_bounds
        rates = {name.removeprefix("lr/"): rate for name, rate in extra.items() if name.startswith("lr/")}
        self._show(
            TrainRecord(
                step=step,
                steps=self.health.steps,
                time=time.time(),
                loss=global_avg_loss,
                max_loss=global_max_loss,
                losses=self._losses(sums_2n),
                weights=dict(zip(labels, weights_n.tolist(), strict=True)),
                tail_loss_mass=tail_mass(sums_2n[1], weights_n, bounds, threshold=loss.threshold),
                learning_rates=rates,
                grad_norm=grad_norm,
                tokens_seen=int(extra.get("n_tokens_seen", 0)),
                seconds_per_step=seconds * self.health.tokens_per_step / tokens,
                tokens_per_second=tokens / seconds,
                devices=dist.get_world_size(),
                tflops=flops / 1e12,
                mfu_percent=100 * flops / peak if (peak := self._peak_flops()) else None,
                memory=self._memory(),
                pace=self.health.pace(step, times),
            )
        )

    def log_validation(self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None) -> None:
        """Log nothing. torchtitan calls this method after each pass. The validator logs all passes as one record."""

    def log_validated(self, step: int, found: Validated) -> None:
        """Log a validation. Every rank calls this method."""
        self._show(
            ValidationRecord(
                step=step,
                steps=self.health.steps,
                time=time.time(),
                weights=found.weights,
                losses=self._losses(found.sums_2n),
                context_gain=found.context_gain,
                windows=found.windows,
                seconds=found.seconds,
                tokens_per_second=found.tokens / found.seconds,
                devices=dist.get_world_size(),
                memory=self._memory(),
            )
        )

    def add_figure(self, tag: str, draw: "Callable[[], Figure]", step: int) -> None:
        """Add a figure to TensorBoard. ``draw`` makes the figure, on the ranks that write TensorBoard's files only."""
        for tracker in self._trackers:
            if isinstance(tracker, TensorBoard):
                with self._surviving():
                    tracker.figure(tag, draw(), step)

    def flush(self) -> None:
        """Write all records to ``metrics.jsonl``: a checkpoint means that the records up to its step are on the disk.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._first:
            self._metrics_log.flush()

    def close(self) -> None:
        with self._surviving():
            self._metrics_log.close()
        for tracker in self._trackers:
            with self._surviving():
                tracker.close()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Turn an error of the disk into a warning, once per file and cause. A full disk loses points, not the run."""
        try:
            yield
        except OSError as error:
            text = str(input_error(error) or why(error))
            if text not in self._warned:
                logger.warning(f"The run goes on without the files of its metrics: {text}")
            self._warned.add(text)

    def _show(self, record: Record) -> None:
        """Pass a record to all logs, and restart the counts of tokens and time."""
        if self._first:
            with self._surviving():
                self._metrics_log.append(record)
            self._print(record)
        values = scalars(record)
        for tracker in self._trackers:
            with self._surviving():
                tracker.log(values, record.step)
        self.ntokens_since_last_log = self.attention_pairs = 0
        self.data_loading_times.clear()
        self.time_last_log = time.perf_counter()
        self.device_memory_monitor.reset_peak_stats()

    def _print(self, record: Record) -> None:
        """Print the lines of a record."""
        for line in validation_lines(record) if isinstance(record, ValidationRecord) else [train_line(record)]:
            logger.info(line)

    def _losses(self, sums_2n: torch.Tensor) -> ContextLosses:
        buckets = self.exact_loss.buckets
        bounds = buckets.lower_bounds.tolist()
        return ContextLosses.of(sums_2n.tolist(), buckets.labels(), bounds, self.exact_loss.threshold)

    def _memory(self) -> Memory:
        return Memory(*self.device_memory_monitor.get_peak_stats())

    def _peak_flops(self) -> float | None:
        """Return the peak FLOP/s of the device in bfloat16. None if torchtitan does not know the device.

        torchtitan takes the peak of an A100 for unknown devices. With float8 the peak is another peak.
        """
        unknown = self.gpu_peak_flops == _A100_FLOPS and "A100" not in self.device_memory_monitor.device_name
        known = utils.device_type != "cpu" and not unknown and not self.has_quantization
        return self.gpu_peak_flops if known else None


_A100_FLOPS = 312e12
