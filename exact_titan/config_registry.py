"""Recipes: functions that return a full trainer config.

``--config NAME``, or ``recipe = "NAME"`` in a TOML, starts from a recipe. torchtitan's own entry point also finds the
recipes: ``--module exact_titan --config NAME``.
"""

from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC

from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.decoder import LlamaSizes
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.schedule import HeldSchedule
from exact_titan.titan.torch_versions import SPMD_BACKEND
from exact_titan.titan.trainer import ExactTrainer
from exact_titan.titan.validate import ExposureValidator


def from_scratch() -> RunConfig:
    """A small Llama from scratch, on the dataset of ``dataloader.dataset_path``."""
    return ExactTrainer.Config(
        architecture=LlamaSizes(),
        dataloader=PackedDataLoader.Config(),
        loss=ExactLoss.Config(),
        optimizer=AdamW.Config(lr=1e-3),
        # Linear warmup, then constant. torchtitan decays from the end of the warmup when decay_ratio is None.
        lr_scheduler=HeldSchedule.Config(warmup_steps=20, decay_ratio=0.0),
        # A CUDA graph cannot replay batches whose varlen metadata differ in shape.
        training=TrainingConfig(local_batch_size=1, seq_len=2048, steps=100, disable_cuda_graphs=True),
        parallelism=ParallelismConfig(spmd_backend=SPMD_BACKEND),
        activation_checkpoint=AttentionSavingAC.Config(),
        # A run cannot resume from a final checkpoint of the model alone.
        checkpoint=ResumableCheckpoints.Config(
            enable=True, interval=500, async_mode="async", last_save_model_only=False
        ),
        metrics=ExposureMetrics.Config(log_freq=10, enable_tensorboard=True),
        validator=ExposureValidator.Config(enable=True, freq=100, steps=-1),
        # torchtitan's structured logs take 13 KB a step and rank.
        debug=DebugConfig(enable_structured_logging=False),
    )


def quickstart() -> RunConfig:
    """The model of the quickstart and of the miniature study, on planted facts: two layers, for one CPU process."""
    config = from_scratch()
    config.architecture = LlamaSizes(
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        ffn_dim=192,
        max_positions=512,
        rope_theta=10_000.0,
        # With tied embeddings, a model of this size needs twice the steps until it copies facts.
        tie_embeddings=False,
    )
    config.dataloader = PackedDataLoader.Config(dataset_path="quickstart/facts/long")
    config.optimizer = AdamW.Config(lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.01)
    config.training = TrainingConfig(
        local_batch_size=4,
        seq_len=512,
        steps=120,
        # The CPU is faster in float32.
        mixed_precision_param="float32",
        disable_cuda_graphs=True,
    )
    config.activation_checkpoint = None
    config.metrics = ExposureMetrics.Config(log_freq=20)
    config.validator = ExposureValidator.Config(enable=True, freq=60, steps=-1)
    return config


def _stage(seq_len: int, *, threshold: int, global_batch_size: int, local_batch_size: int) -> RunConfig:
    """One stage of the paper's table: continued pretraining of a model in windows of ``seq_len`` tokens.

    These values are the paper's: windows, thresholds, alpha, gamma, AdamW, a linear warmup and then a constant rate.
    A comment with "ours" marks values that the available text of the paper does not state.
    """
    return ExactTrainer.Config(
        dataloader=PackedDataLoader.Config(),
        loss=ExactLoss.Config(threshold=threshold),
        # Ours: learning rate, betas and weight decay.
        optimizer=AdamW.Config(lr=2e-5, beta1=0.9, beta2=0.95, weight_decay=0.1),
        # Ours: the length of the warmup.
        lr_scheduler=HeldSchedule.Config(warmup_steps=100, decay_ratio=0.0),
        # Ours: batch (half a million tokens), budget (half a billion tokens), clipping.
        training=TrainingConfig(
            seq_len=seq_len,
            local_batch_size=local_batch_size,
            global_batch_size=global_batch_size,
            steps=1000,
            max_norm=1.0,
            mixed_precision_param="bfloat16",
            mixed_precision_reduce="float32",
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(spmd_backend=SPMD_BACKEND),
        activation_checkpoint=AttentionSavingAC.Config(),
        checkpoint=ResumableCheckpoints.Config(
            enable=True, interval=250, keep_latest_k=2, async_mode="async", last_save_model_only=False
        ),
        metrics=ExposureMetrics.Config(log_freq=10, enable_tensorboard=True),
        validator=ExposureValidator.Config(enable=True, freq=250, steps=-1),
        debug=DebugConfig(seed=0, enable_structured_logging=False),
    )


def stage_4k() -> RunConfig:
    """Windows of 4K, tail from 1K."""
    return _stage(4096, threshold=1024, global_batch_size=128, local_batch_size=4)


def stage_8k() -> RunConfig:
    """Windows of 8K, tail from 2K."""
    return _stage(8192, threshold=2048, global_batch_size=64, local_batch_size=2)


def stage_16k() -> RunConfig:
    """Windows of 16K, tail from 4K."""
    return _stage(16_384, threshold=4096, global_batch_size=32, local_batch_size=1)


def _long_stage(seq_len: int) -> RunConfig:
    """One stage beyond the paper's table. All values are ours, except for the values of the paper's method.

    The tail starts at a quarter of the window, as in the paper's stages. A step has half a million tokens, as in the
    shorter stages here. Every window is on 4 GPUs: 8 does not divide the 28 heads of Qwen2.5-7B.
    """
    config = _stage(seq_len, threshold=seq_len // 4, global_batch_size=2**19 // seq_len, local_batch_size=1)
    config.parallelism.context_parallel_degree = 4
    return config


def stage_64k() -> RunConfig:
    """Ours, not the paper's: windows of 64K on groups of 4 GPUs, tail from 16K."""
    return _long_stage(65_536)


def stage_128k() -> RunConfig:
    """Ours, not the paper's: windows of 128K on groups of 4 GPUs, tail from 32K."""
    config = _long_stage(131_072)
    # On 8 GPUs of 80 GB, selective checkpointing needs 108 GiB for Qwen2.5-7B (exact-titan plan).
    config.activation_checkpoint = FullAC.Config()
    config.loss.num_chunks = 16
    return config
