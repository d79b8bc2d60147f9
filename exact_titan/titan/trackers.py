"""TensorBoard and W&B: the tags of a record, and one continuous run over all starts in a folder.

No tag has parentheses, because a chart of TensorBoard's Custom Scalars with parentheses in a tag stays empty.
"""

import contextlib
import importlib.util
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from torchtitan.components.metrics import BaseLogger, MetricsProcessor, WandBLogger

from exact_titan.errors import InputError
from exact_titan.runs.records import ContextLosses, Memory, Record, TrainRecord, ValidationRecord, Weights
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.file_errors import naming
from exact_titan.titan.step_clock import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WANDB_RUN_ID_FILE = "wandb_run_id"
"""The file in the run's folder that holds the id of the W&B run."""

_LONGEST_ID = 128
"""Most characters of the id of a W&B run."""


def scalars(record: Record) -> dict[str, float]:
    """Return the tags and the values of a record for TensorBoard and W&B. ``docs/metrics.md`` lists the tags."""
    return _train_scalars(record) if isinstance(record, TrainRecord) else _validation_scalars(record)


def group_of(weights: Weights) -> str:
    """Return the beginning of all tags of a validation: ``validation`` or ``validation_ema``."""
    return "validation" if weights == "last" else f"validation_{weights}"


def check_wandb(config: MetricsProcessor.Config) -> None:
    """Refuse ``metrics.enable_wandb`` if the package wandb is not installed.

    Raises:
        InputError: naming the option.
    """
    if config.enable_wandb and importlib.util.find_spec("wandb") is None:
        raise InputError("metrics.enable_wandb is on, but the package wandb is not installed: pip install wandb")


class TensorBoard(BaseLogger):
    """Writes the scalars and figures of a run into ``folder``. All starts of the run write into the same folder.

    After an error of the disk the next call starts another file. The points of the failed call are lost here.
    ``metrics.jsonl`` has them.

    Every start adds a file. The file begins with the step of the start, and TensorBoard then hides older points of
    later steps. The points reach the disk at every record, because a killed run cannot repeat the points of steps
    before its checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def begin(self, step: int, buckets: Sequence[str]) -> None:
        """Start a file for a run whose next step is ``step + 1``. ``buckets`` are the names ``<lo>-<hi>``."""
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        self._writer.add_custom_scalars(_charts(buckets))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Add the scalars of a step.

        Raises:
            OSError: naming the folder, if the file cannot be written.
        """
        with self._writing() as writer:
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

    def figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Add a figure, and close the figure. The errors are those of :meth:`log`."""
        with self._writing() as writer:
            writer.add_figure(tag, figure, step)
            writer.flush()

    def close(self) -> None:
        """Write the last points. The errors are those of :meth:`log`."""
        if self._writer is not None:
            with self._writing() as writer:
                writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        try:
            with naming(self._folder):
                if self._writer is None:
                    self._writer = SummaryWriter(str(self._folder))
                yield self._writer
        except OSError:
            # The writer's thread has ended with the error, and every further call would raise the error again.
            self._writer = None
            raise


class WandB(BaseLogger):
    """torchtitan's W&B logger as one W&B run over all starts of the run.

    The id of the W&B run is in ``<dump_folder>/wandb_run_id``. A resumed run uses this id. W&B ignores points of steps
    that it already has. ``WANDB_RUN_ID``, ``WANDB_RESUME_FROM`` and ``WANDB_FORK_FROM`` take precedence.

    Args:
        run: output folder of the run.
        config: the config of the run, for W&B's page.
    """

    def __init__(self, run: Path, config: dict[str, Any] | None) -> None:
        self._run, self._config = run, config
        self._logger: WandBLogger | None = None

    def begin(self, step: int, buckets: Sequence[str]) -> None:
        """Start the W&B run, or resume the W&B run if ``step`` is not 0.

        Raises:
            InputError: if W&B does not start, or if the file of the id has no id.
        """
        file = self._run / WANDB_RUN_ID_FILE
        if not os.environ.keys() & {"WANDB_RESUME_FROM", "WANDB_FORK_FROM"}:
            known = known_id(file) if step else ""
            os.environ.setdefault("WANDB_RUN_ID", known or uuid.uuid4().hex[:8])
            os.environ.setdefault("WANDB_RESUME", "allow")
        try:
            self._logger = WandBLogger(str(self._run), config_dict=self._config)
        except Exception as error:  # wandb raises many types
            raise InputError(
                f"metrics.enable_wandb is on, but W&B does not start ({' '.join(str(error).split()):.200}): run `wandb "
                f"login`, set WANDB_MODE=offline, or leave the option out"
            ) from error
        write_atomically(file, f"{self._logger.wandb.run.id}\n")

    def log(self, metrics: dict[str, Any], step: int) -> None:
        assert self._logger is not None
        self._logger.log(metrics, step)

    def close(self) -> None:
        if self._logger is not None:
            self._logger.close()


def known_id(file: Path) -> str:
    """Return the id of the W&B run in a file. Empty: there is no such file.

    Raises:
        InputError: if the file has no id of W&B. The folder of the run may come from somebody else.
    """
    try:
        text = read_bounded(file, _LONGEST_ID + 2).decode("ascii").strip()
    except FileNotFoundError:
        return ""
    except ValueError:
        text = " "
    if text and re.fullmatch(r"[\w.-]+", text) is None:
        raise InputError(f"{file} has no id of a W&B run: restore the file from a copy, or set WANDB_RUN_ID")
    return text


def _charts(buckets: Sequence[str]) -> dict[str, dict[str, list]]:
    """Return the layout of TensorBoard's Custom Scalars: one chart a bucket, with the loss first.

    Custom Scalars gives every run one colour. In a chart of several tags, the buckets of a run would have the same
    colour.
    """

    def charts(tags: dict[str, str]) -> dict[str, list]:
        return {title: ["Multiline", [f"^{re.escape(tag)}$"]] for title, tag in tags.items()}

    layout: dict[str, dict[str, list]] = {"Cross-entropy": {}}
    for name, group, total in (
        ("validation", "validation_loss_by_context", "validation_metrics/loss"),
        ("training", "loss_by_context", "loss_metrics/cross_entropy"),
    ):
        tags = {"all": total, "tail": f"{group}/tail", "below the tail": f"{group}/below_tail"}
        layout["Cross-entropy"] |= charts({f"{name}, {title}": tag for title, tag in tags.items()})
        layout[f"Cross-entropy by effective context, {name}"] = charts({one: f"{group}/{one}" for one in buckets})
    layout["Share of the targets"] = charts({one: f"exposure/share/{one}" for one in buckets})
    layout["Weight of a target"] = charts({one: f"exposure/weight/{one}" for one in buckets})
    layout["Seconds a step, on the slowest rank"] = charts({part: f"step_time/{part}_seconds" for part in PARTS})
    return layout


def _train_scalars(record: TrainRecord) -> dict[str, float]:
    targets = record.losses.targets
    counts = {label: bucket.targets for label, bucket in record.losses.buckets.items()}
    tags = {
        "loss_metrics/cross_entropy": record.losses.cross_entropy,
        "loss_metrics/global_avg_loss": record.loss,
        "loss_metrics/global_max_loss": record.max_loss,
        **_by_context(record.losses, "loss_by_context"),
        **{f"exposure/share/{label}": n / targets for label, n in counts.items() if targets},
        **{f"exposure/weight/{label}": weight for label, weight in record.weights.items()},
        "exposure/tail_loss_mass": record.tail_loss_mass,
        "grad_norm": record.grad_norm,
        **{f"lr/{name}": rate for name, rate in record.learning_rates.items()},
        "n_tokens_seen": record.tokens_seen,
        "throughput/tokens_per_second": record.tokens_per_second,
        "throughput/tokens_per_second_per_device": record.tokens_per_second / record.devices,
        "tflops": record.tflops,
        "mfu_percent": record.mfu_percent,
        "time_metrics/end_to_end_seconds": record.seconds_per_step,
        **{f"step_time/{part}_seconds": seconds for part, seconds in record.pace.step_seconds.items()},
        "imbalance/attention": record.pace.imbalance_attention,
        "imbalance/data_seconds": record.pace.imbalance_data_seconds,
        "progress/tokens_left": record.pace.tokens_left,
        "progress/hours_left": record.pace.hours_left,
        **_memory(record.memory, "memory"),
    }
    return {tag: value for tag, value in tags.items() if value is not None}


def _validation_scalars(record: ValidationRecord) -> dict[str, float]:
    group = group_of(record.weights)
    tags = {
        f"{group}_metrics/loss": record.losses.cross_entropy,
        **_by_context(record.losses, f"{group}_loss_by_context"),
        **{f"{group}_context_gain/{piece}": found.gain for piece, found in record.context_gain.items()},
        f"{group}_metrics/seconds": record.seconds,
        f"{group}_metrics/tokens_per_second": record.tokens_per_second,
        **_memory(record.memory, f"{group}_metrics/memory"),
    }
    return {tag: value for tag, value in tags.items() if value is not None}


def _by_context(losses: ContextLosses, group: str) -> dict[str, float | None]:
    """``group/<lo>-<hi>``, ``group/below_tail`` and ``group/tail``."""
    means = losses.buckets | {"below_tail": losses.below_tail, "tail": losses.tail}
    return {f"{group}/{name}": mean.cross_entropy for name, mean in means.items()}


def _memory(memory: Memory, group: str) -> dict[str, float]:
    return {
        f"{group}/max_active_gib": memory.max_active_gib,
        f"{group}/max_active_percent": memory.max_active_percent,
        f"{group}/max_reserved_gib": memory.max_reserved_gib,
        f"{group}/max_reserved_percent": memory.max_reserved_percent,
        f"{group}/num_alloc_retries": memory.alloc_retries,
        f"{group}/num_ooms": memory.ooms,
    }
