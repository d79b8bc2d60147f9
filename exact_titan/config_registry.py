"""Recipes: functions that return a full trainer config.

``--config NAME``, or ``recipe = "NAME"`` in a TOML, starts from one.

torchtitan finds them too: ``--module exact_titan --config NAME``.
"""

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC

from exact_titan.data.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.models import LlamaArchitecture
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.torch_versions import SPMD_BACKEND
from exact_titan.titan.trainer import ExactTrainer
from exact_titan.titan.validate import ExposureValidator


def from_scratch() -> ExactTrainer.Config:
    """A small Llama from scratch, on whatever dataset ``dataloader.dataset_path`` names."""
    return ExactTrainer.Config(
        model=LlamaArchitecture(),
        dataloader=PackedDataLoader.Config(),
        loss=ExactLoss.Config(),
        optimizer=AdamW.Config(lr=1e-3),
        # Linear warmup, then constant. torchtitan decays from the end of the warmup when decay_ratio is None.
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=20, decay_ratio=0.0),
        # The varlen metadata of two batches differ in shape, which a CUDA graph cannot replay.
        training=TrainingConfig(local_batch_size=1, seq_len=2048, steps=100, disable_cuda_graphs=True),
        parallelism=ParallelismConfig(spmd_backend=SPMD_BACKEND),
        activation_checkpoint=SelectiveAC.Config(),
        # A final checkpoint of the model alone could not be resumed.
        checkpoint=CheckpointManager.Config(enable=True, interval=500, last_save_model_only=False),
        metrics=ExposureMetrics.Config(log_freq=10, enable_tensorboard=True),
        validator=ExposureValidator.Config(enable=True, freq=100, steps=-1),
    )
