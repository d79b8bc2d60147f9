"""torchtitan's trainer with EXACT: the checks before it starts, varlen metadata from the host, weights that refresh."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.validate import Validator
from torchtitan.trainer import Trainer

from exact_titan.data import PackedDataset
from exact_titan.data.loader import PackedDataLoader, check_window
from exact_titan.data.manifest import TOKENIZER_FOLDER
from exact_titan.errors import InputError
from exact_titan.titan.attention import varlen_metadata
from exact_titan.titan.loss import ExactLoss, check_config
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.models import LlamaArchitecture, llama_spec
from exact_titan.titan.optimizer import AdamW
from exact_titan.titan.torch_versions import SPMD_BACKEND
from exact_titan.titan.validate import ExposureValidator


class ExactTrainer(Trainer):
    """Trains on a packed dataset with :class:`ExactLoss`.

    The windows, the weights and the tokenizer all come from ``dataloader.dataset_path``, unless an option says so.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        model: LlamaArchitecture = field(default_factory=LlamaArchitecture)
        """Architecture to train from scratch."""

        hf_assets_path: str = ""
        """Folder of the tokenizer; empty: the copy in the packed dataset."""

        dataloader: BaseDataLoader.Config = field(default_factory=PackedDataLoader.Config)
        loss: BaseLoss.Config = field(default_factory=ExactLoss.Config)
        metrics: MetricsProcessor.Config = field(default_factory=ExposureMetrics.Config)
        validator: Validator.Config = field(default_factory=ExposureValidator.Config)
        optimizer: OptimizersContainer.Config = field(default_factory=AdamW.Config)

    config: Config
    loss_fn: ExactLoss
    metrics_processor: ExposureMetrics

    def __init__(self, config: Config) -> None:
        config = complete(config)
        super().__init__(config)
        self.loss_fn.to(self.device)
        self.metrics_processor.exact_loss = self.loss_fn

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """As torchtitan's, with the document borders that the loader knew: no search for them on the device."""
        inputs, positions = input_dict["input"], input_dict["positions"]
        cu_seqlens = input_dict["cu_seqlens"]
        host_offsets = tuple(cu_seqlens.tolist()) if cu_seqlens.device.type == "cpu" else None
        masks = varlen_metadata(cu_seqlens, input_dict["max_seqlen"], host_offsets)
        self.ntokens_seen += labels.numel()
        return inputs, labels, {"positions": positions, "attention_masks": masks}

    def train_step(self, data_iterator) -> None:
        """One optimizer step, between the two halves of a weight refresh."""
        self.loss_fn.start_step()
        super().train_step(data_iterator)
        self.loss_fn.end_step(self.step)

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's trainer state and the loss's weights and counters."""
        return {**super().state_dict(), "exposure": self.loss_fn.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.loss_fn.load_state_dict(state_dict["exposure"])


def complete(config: ExactTrainer.Config) -> ExactTrainer.Config:
    """The config with what the packed dataset says filled in, checked before any process group is set up.

    Raises:
        InputError: naming the option or the file, and what to do.
    """
    if not isinstance(config.dataloader, PackedDataLoader.Config) or not isinstance(config.loss, ExactLoss.Config):
        raise InputError("exact_titan.train needs its own dataloader and loss: start from one of its recipes")
    _check_sizes(config)
    _check_parallelism(config)
    if not config.dataloader.dataset_path:
        raise InputError("dataloader.dataset_path is empty: name a packed dataset (made by `exact-titan pack`)")
    dataset = PackedDataset(Path(config.dataloader.dataset_path), split=config.dataloader.split)
    check_window(dataset, config.training.seq_len)
    check_config(config.loss, window=dataset.window)
    if config.training.seq_len % config.loss.num_chunks:
        raise InputError(
            f"loss.num_chunks is {config.loss.num_chunks}: it must divide training.seq_len ({config.training.seq_len})"
        )
    loss = replace(config.loss, dataset_path=config.loss.dataset_path or config.dataloader.dataset_path)
    validator = config.validator
    if validator.enable and isinstance(validator.dataloader, PackedDataLoader.Config):
        path = validator.dataloader.dataset_path or config.dataloader.dataset_path
        validator = replace(validator, dataloader=replace(validator.dataloader, dataset_path=path))
        check_window(PackedDataset(Path(path), split=validator.dataloader.split), config.training.seq_len)
    model_spec = config.model_spec or llama_spec(
        config.model, seq_len=config.training.seq_len, tokenizer_vocab=dataset.manifest.tokenizer.vocab_size
    )
    assets = config.hf_assets_path or str(dataset.folder / TOKENIZER_FOLDER)
    completed = replace(config, loss=loss, validator=validator, hf_assets_path=assets)
    completed.model_spec = model_spec
    return completed


def _check_sizes(config: ExactTrainer.Config) -> None:
    training = config.training
    for name, value in {
        "training.steps": training.steps,
        "training.local_batch_size": training.local_batch_size,
        "metrics.log_freq": config.metrics.log_freq,
        "validator.freq": config.validator.freq,
    }.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be 1 or more")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if training.global_batch_size > 0 and training.global_batch_size % (training.local_batch_size * ranks):
        raise InputError(
            f"training.global_batch_size is {training.global_batch_size}: it must be a multiple of "
            f"training.local_batch_size ({training.local_batch_size}) times the number of processes ({ranks})"
        )


def _check_parallelism(config: ExactTrainer.Config) -> None:
    for name, reason in _REFUSED.items():
        degree = getattr(config.parallelism, name)
        if degree > 1:
            raise InputError(f"parallelism.{name} is {degree}: {reason}; set it to 1")
    if config.parallelism.spmd_backend != SPMD_BACKEND:
        raise InputError(
            f"parallelism.spmd_backend is {config.parallelism.spmd_backend}: set it to {SPMD_BACKEND}, "
            f"which runs on every torch version supported here"
        )


_REFUSED = {
    "pipeline_parallel_degree": "torchtitan hands the loss no positions there, so effective context is unknown to it",
    "tensor_parallel_degree": "the vocabulary-parallel loss does not carry the weights yet",
    "context_parallel_degree": "varlen attention does not run under context parallelism",
}
