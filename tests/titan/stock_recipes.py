"""A config for torchtitan's own trainer, without EXACT."""

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.trainer import Trainer

from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec


def small_llama() -> Trainer.Config:
    sizes = LlamaSizes(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64)
    return Trainer.Config(
        model_spec=decoder_spec(sizes.architecture(seq_len=64, tokenizer_vocab=256)),
        loss=ChunkedLossWrapper.Config(num_chunks=8),
        optimizer=default_adamw(lr=1e-2),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.0),
        training=TrainingConfig(
            local_batch_size=1,
            global_batch_size=4,
            seq_len=64,
            steps=10,
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
        activation_checkpoint=SelectiveAC.Config(),
        metrics=MetricsProcessor.Config(log_freq=1),
        checkpoint=CheckpointManager.Config(enable=False),
        debug=DebugConfig(seed=7),
    )
