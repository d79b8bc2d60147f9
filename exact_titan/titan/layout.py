"""The layout of a run's processes: data parallelism, context parallelism and tensor parallelism.

The ranks of a data-parallel group compute different windows. The ranks of a context-parallel group compute parts of the
same windows. The ranks of a tensor-parallel group compute the same part of the same windows, with parts of the weights.
"""

import os

from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.decoder import Decoder

from exact_titan.errors import InputError
from exact_titan.titan.model.context_parallel import SequenceShard
from exact_titan.titan.model.decoder import DecoderModel
from exact_titan.titan.torch_versions import SPMD_BACKEND

REFUSED = {
    "pipeline_parallel_degree": "torchtitan hands no positions to the loss in a pipeline, but the loss needs them",
    "expert_parallel_degree": "the models here have no experts",
}
"""The kinds of parallelism that no run can use, and the reason."""


def check_layout(parallelism: ParallelismConfig, *, ranks: int, seq_len: int) -> None:
    """Refuse degrees that do not fit together, the number of processes or the window.

    Args:
        ranks: number of processes.
        seq_len: length of the windows, in tokens.

    Raises:
        InputError: naming the option.
    """
    for name, reason in REFUSED.items():
        degree = getattr(parallelism, name)
        if degree != 1:
            raise InputError(f"parallelism.{name} is {degree}: {reason}; set it to 1")
    context, tensor = parallelism.context_parallel_degree, parallelism.tensor_parallel_degree
    for name, degree in (("context_parallel_degree", context), ("tensor_parallel_degree", tensor)):
        if degree < 1 or ranks % degree:
            raise InputError(
                f"parallelism.{name} is {degree}: it must be 1 or more and divide the number of processes ({ranks})"
            )
    replicas, shards = parallelism.data_parallel_replicate_degree, parallelism.data_parallel_shard_degree
    groups = context * tensor
    data_ranks = ranks // groups
    if ranks % groups or replicas < 1 or data_ranks % replicas or shards not in (-1, data_ranks // replicas):
        model = f", context_parallel_degree {context} and tensor_parallel_degree {tensor}" if groups > 1 else ""
        raise InputError(
            f"parallelism.data_parallel_replicate_degree is {replicas}, data_parallel_shard_degree {shards}{model}: "
            f"their product must be the number of processes ({ranks}); -1 computes data_parallel_shard_degree from it"
        )
    # torchtitan divides by twice the context-parallel degree, because its own context parallelism needs that.
    parts = tensor * (2 * context if context > 1 else 1)
    if seq_len % parts:
        raise InputError(
            f"training.seq_len is {seq_len}: with context_parallel_degree {context} and "
            f"tensor_parallel_degree {tensor} it must be divisible by {parts}"
        )
    if parallelism.spmd_backend != SPMD_BACKEND:
        raise InputError(
            f"parallelism.spmd_backend is {parallelism.spmd_backend}, but only {SPMD_BACKEND} runs on every supported "
            f"torch version: set it to {SPMD_BACKEND}"
        )


def check_stock_layout(parallelism: ParallelismConfig) -> None:
    """Refuse the degrees of torchtitan's own trainer that do not fit the EXACT loss.

    Raises:
        InputError: naming the option.
    """
    pipeline, context = parallelism.pipeline_parallel_degree, parallelism.context_parallel_degree
    if pipeline != 1:
        reason = REFUSED["pipeline_parallel_degree"]
        raise InputError(f"parallelism.pipeline_parallel_degree is {pipeline}: {reason}; set it to 1")
    if context != 1:
        raise InputError(
            f"parallelism.context_parallel_degree is {context}: torchtitan's own trainer gives the loss a part of each "
            f"window, but the weights need whole windows; set it to 1, or use python -m exact_titan.train"
        )


def check_sizes_of_model(model: Decoder.Config, parallelism: ParallelismConfig) -> None:
    """Refuse a model whose heads or inner width cannot be divided over the ranks.

    Raises:
        InputError: naming the option and the sizes of the model.
    """
    tensor, context = parallelism.tensor_parallel_degree, parallelism.context_parallel_degree
    if not isinstance(model, DecoderModel.Config):
        if context > 1:
            raise InputError(
                f"parallelism.context_parallel_degree is {context}: the attention of the model spec "
                f"{type(model).__qualname__} has no context parallelism: set it to 1, or use a model of this package"
            )
        return
    architecture, heads = model.architecture, model.architecture.n_heads
    sizes = {"query heads": heads, "key heads": architecture.n_kv_heads, "ffn_dim": architecture.ffn_dim}
    for name, size in sizes.items():
        if size % tensor:
            raise InputError(
                f"parallelism.tensor_parallel_degree is {tensor}: it must divide the model's {name} ({size})"
            )
    if heads // tensor % context:
        of = f" of a tensor-parallel rank ({heads} / {tensor})" if tensor > 1 else ""
        raise InputError(
            f"parallelism.context_parallel_degree is {context}: it must divide the model's query heads "
            f"({heads // tensor}{of}): the ranks of a group exchange heads for sequence"
        )


def data_parallel_ranks(parallelism: ParallelismConfig, ranks: int) -> int:
    """Return the number of ranks that compute different windows.

    Args:
        parallelism: the degrees, each 1 or more. Their product divides ``ranks``.
        ranks: number of processes.
    """
    return ranks // (parallelism.context_parallel_degree * parallelism.tensor_parallel_degree)


def shards_to_check() -> slice:
    """Return the shards of a dataset whose files this rank checks at the start: the ranks of a machine divide them.

    Every machine checks all shards, because machines may have copies of a dataset, or see other files on a shared disk.
    """
    return slice(int(os.environ.get("LOCAL_RANK", "0")), None, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def sequence_shard(dims: ParallelDims) -> SequenceShard:
    """Return the part of the sequence of this rank."""
    return SequenceShard(_rank(dims, "cp"), dims.cp)


def counts_targets(dims: ParallelDims) -> bool:
    """Whether this rank counts its targets. One of the ranks with the same targets counts."""
    return _rank(dims, "tp") == 0


def counts_windows(dims: ParallelDims) -> bool:
    """Whether this rank counts its windows. One of the ranks with the same windows counts."""
    return _rank(dims, "tp") == 0 and _rank(dims, "cp") == 0


def _rank(dims: ParallelDims, axis: str) -> int:
    mesh = dims.get_optional_mesh(axis)
    return 0 if mesh is None else mesh.get_local_rank()
