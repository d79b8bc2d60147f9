"""The options of a training run: torchtitan's config tree with the components of this package."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torchtitan.components.checkpointer import BaseCheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
from torchtitan.components.validate import Validator
from torchtitan.config import CompileConfig
from torchtitan.trainer import Trainer

from exact_titan.models.architecture import Architecture
from exact_titan.models.rope_change import RopeChange
from exact_titan.runs.run_record import Resume
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.ema import EmaConfig
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.activation_checkpoint import ActivationCheckpointingConfig, AttentionSavingAC
from exact_titan.titan.model.attention import Implementation
from exact_titan.titan.model.decoder import LlamaSizes
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.schedule import HeldSchedule
from exact_titan.titan.validate import ExposureValidator


def _has_cuda() -> bool:
    return torch.cuda.is_available()


@dataclass(kw_only=True, slots=True)
class CompileOptions(CompileConfig):
    """torchtitan's options of torch.compile, on by default with CUDA."""

    enable: bool = field(default_factory=_has_cuda)
    """Compile the steps with torch.compile. Default: on with a CUDA GPU, off on the CPU."""


@dataclass(kw_only=True, slots=True)
class RunConfig(Trainer.Config):
    """All options of a run, ``ExactTrainer.Config``.

    :func:`exact_titan.config.load_config` makes the config from a recipe, a TOML and the command line.
    :func:`exact_titan.titan.preflight.complete` checks the config, and fills in the values of the packed dataset and
    the model.
    """

    # The import of exact_titan.titan.trainer sets the owner. Without the import build() fails. With an inherited owner
    # build() would return torchtitan's own trainer without a warning.
    _owner: ClassVar[type | None] = None

    model: str = ""
    """Hugging Face folder of the first weights: config.json, safetensors, tokenizer. Empty: a model from scratch, or
    the model of start_from. The folder replaces a recipe's own model_spec."""

    start_from: str = ""
    """Output folder of the previous stage. The run starts from the weights of the last checkpoint in that folder.
    {rule} stands for loss.rule."""

    export: str = ""
    """New folder for the final weights in Hugging Face's format. Empty: no export. {rule} stands for loss.rule."""

    architecture: LlamaSizes = field(default_factory=LlamaSizes)
    """Sizes of a model from scratch."""

    rope: RopeChange = field(default_factory=RopeChange)
    """Another RoPE for the model of --model or --start_from."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """The exponential moving average of the weights."""

    attention: Implementation = "auto"
    """Attention kernel: fa3 (FlashAttention 3, Hopper), fa2 (the flash-attn package) or torch (torch's own). auto: the
    first installed kernel of this list, and torch's SDPA on the CPU."""

    hf_assets_path: str = ""
    """Folder of the tokenizer. Empty: the copy in the packed dataset."""

    dataloader: BaseDataLoader.Config = field(default_factory=PackedDataLoader.Config)
    loss: BaseLoss.Config = field(default_factory=ExactLoss.Config)
    metrics: MetricsProcessor.Config = field(default_factory=ExposureMetrics.Config)
    validator: Validator.Config = field(default_factory=ExposureValidator.Config)
    checkpoint: BaseCheckpointManager.Config = field(default_factory=ResumableCheckpoints.Config)
    optimizer: OptimizersContainer.Config = field(default_factory=AdamW.Config)
    lr_scheduler: LRSchedulersContainer.Config = field(default_factory=HeldSchedule.Config)
    compile: CompileConfig = field(default_factory=CompileOptions)
    activation_checkpoint: ActivationCheckpointingConfig = field(default_factory=AttentionSavingAC.Config)

    # torchtitan leaves names with an underscore out when it writes a config down.
    _resume: Annotated[Resume | None, tyro.conf.Suppress] = field(default=None, repr=False, compare=False)
    """The checkpoint that the start continues, set by preflight. None: a new run."""

    _first_weights: Annotated[dict[str, Any], tyro.conf.Suppress] = field(
        default_factory=dict, repr=False, compare=False
    )
    """The first weights of a new run, set by preflight (:attr:`RunRecord.weights`)."""

    _stage_before: Annotated[Architecture | None, tyro.conf.Suppress] = field(default=None, repr=False, compare=False)
    """The model of the previous stage, set by a study whose previous stage has not finished."""
