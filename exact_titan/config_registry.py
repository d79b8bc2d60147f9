"""Recipes: functions that return a full trainer config.

``--config NAME``, or ``recipe = "NAME"`` in a TOML, starts from one.

torchtitan finds them too: ``--module exact_titan --config NAME``.
"""

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC

from exact_titan.data.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.models import LlamaSizes
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.torch_versions import SPMD_BACKEND
from exact_titan.titan.trainer import ExactTrainer
from exact_titan.titan.validate import ExposureValidator


def from_scratch() -> ExactTrainer.Config:
    """A small Llama from scratch, on whatever dataset ``dataloader.dataset_path`` names."""
    return ExactTrainer.Config(
        architecture=LlamaSizes(),
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


def quickstart() -> ExactTrainer.Config:
    """The run of scripts/quickstart.sh: a tiny Llama on the standard library's sources, for two CPU processes."""
    config = from_scratch()
    config.architecture = LlamaSizes(dim=128, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=384)
    config.dataloader = PackedDataLoader.Config(dataset_path="quickstart/packed")
    config.lr_scheduler = LRSchedulersContainer.Config(warmup_steps=10, decay_ratio=0.0)
    config.training = TrainingConfig(
        local_batch_size=1,
        global_batch_size=2,
        seq_len=4096,
        steps=60,
        # The CPU is faster in float32; FlashAttention needs bfloat16, and the script asks for it on a GPU.
        mixed_precision_param="float32",
        disable_cuda_graphs=True,
    )
    config.activation_checkpoint = None
    config.metrics = ExposureMetrics.Config(log_freq=2, enable_tensorboard=True)
    config.validator = ExposureValidator.Config(enable=True, freq=60, steps=-1)
    config.debug = DebugConfig(seed=0)
    return config
