"""EXACT in torchtitan's own trainer. ``--override.imports`` names the functions of this module, with options as JSON.

::

    torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_8b --training.seq_len 16384 \\
      --training.disable_cuda_graphs --override.imports \\
      'exact_titan.titan.overrides.exact_loss={"dataset_path": "packed"}' \\
      'exact_titan.titan.overrides.packed_dataloader={"dataset_path": "packed"}'

For a mixture, give both functions the same value, such as ``"packed/web=3,packed/math=1"``.

The import adapts torchtitan to the torch version and, without an accelerator, to the CPU. torchtitan imports overrides
only after the choice of its device. A trial on the CPU therefore needs ``import exact_titan.titan.overrides`` in the
module of the config (``--module``).
"""

import functools
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.config.override import derive, override
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.common.attention import VarlenAttention
from torchtitan.trainer import Trainer

from exact_titan.errors import InputError
from exact_titan.titan import cpu, torch_versions
from exact_titan.titan.layout import check_stock_layout
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.loss_options import NEEDS_OWN_TRAINER, LossOptions, checked_rule
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.attention import DocumentAttention, Implementation
from exact_titan.titan.run_config import RunConfig

torch_versions.install()
cpu.install()


def _check_after_overrides() -> None:
    """Make torchtitan's trainer refuse a pipeline and context parallelism with the EXACT loss.

    An override sees only the config of its component. torchtitan checks the whole config directly after the overrides.
    """
    stock = Trainer.Config._validate_cuda_graphs

    @functools.wraps(stock)
    def check(config: Trainer.Config) -> None:
        stock(config)
        if isinstance(config.loss, ExactLoss.Config) and not isinstance(config, RunConfig):
            check_stock_layout(config.parallelism)

    Trainer.Config._validate_cuda_graphs = check


_check_after_overrides()


@override(target=ChunkedLossWrapper.Config, fqns=["loss"], description="EXACT loss")
def exact_loss(config: ChunkedLossWrapper.Config, *, dataset_path: str, **options: Any) -> LossOptions:
    """Replace torchtitan's chunked cross-entropy by the EXACT loss. The options are those of :class:`LossOptions`.

    Raises:
        InputError: if ``refresh_steps`` is set, or if the rule is unknown or needs more than torchtitan's trainer gives
            to a loss. Only exact_titan's trainer can refresh and checkpoint the weights, give the loss the places of
            the windows (``random``), and sum the weights of a step before its first microbatch
            (``normalized_exact``).
    """
    if options.get("refresh_steps"):
        raise InputError("refresh_steps needs exact_titan's own trainer (python -m exact_titan.train): leave it at 0")
    loss = ExactLoss.Config(dataset_path=dataset_path, **{"num_chunks": config.num_chunks, **options})
    rule = checked_rule(loss.rule)
    if rule.needs_places or rule.weighted_divisor:
        raise InputError(f"loss.rule is {rule.name}: {NEEDS_OWN_TRAINER}")
    return loss


@override(target=BaseDataLoader.Config, fqns=["dataloader"], description="packed dataset")
def packed_dataloader(config: BaseDataLoader.Config, *, dataset_path: str, seed: int = 0) -> PackedDataLoader.Config:
    """Replace torchtitan's text dataset by the training windows of a packed dataset or of a mixture."""
    return PackedDataLoader.Config(dataset_path=dataset_path, seed=seed, varlen_metadata=False)


@override(target=BaseDataLoader.Config, fqns=["validator.dataloader"], description="packed validation windows")
def packed_validation(config: BaseDataLoader.Config, *, dataset_path: str) -> PackedDataLoader.Config:
    """Replace torchtitan's validation dataset by the validation windows of a packed dataset."""
    return PackedDataLoader.Config(dataset_path=dataset_path, split="val", infinite=False, varlen_metadata=False)


@override(target=VarlenAttention.Config, description="document attention with a choice of kernels, also on the CPU")
def document_attention(
    config: VarlenAttention.Config, *, implementation: Implementation = "auto"
) -> DocumentAttention.Config:
    """Replace torchtitan's varlen attention by document attention: for the CPU, or for another kernel on CUDA."""
    return derive(config, DocumentAttention.Config, implementation=implementation)


@override(target=SelectiveAC.Config, exact=True, description="selective checkpointing that saves every attention")
def save_attention(config: SelectiveAC.Config) -> AttentionSavingAC.Config:
    """Replace selective activation checkpointing by a policy that runs flash-attn's attention only once."""
    return derive(config, AttentionSavingAC.Config)
