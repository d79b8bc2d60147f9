"""Lets torchtitan 0.3.0 run in one process under torch 2.11, on a GPU machine that can download nothing.

Such a machine may come with an image of its own: torch 2.11 with CUDA, no network, torchtitan and its small
dependencies carried along as wheels. exact_titan itself needs torch 2.13 and says so; this is for benchmarks on such a
machine only, and therefore no part of the package. What torch 2.11 or the image lacks, and what stands in for it:

* ``torch.distributed.fsdp.DataParallelMeshDims``: torchtitan names it in annotations and on paths that
  ``spmd_backend="partial_dtensor"`` does not take. A stand-in that fails when used.
* Hugging Face ``datasets`` with pyarrow, too large to carry: torchtitan imports it for its own text dataloader, which
  is not used here. A stand-in that fails when used.
* ``ChunkedLossWrapper`` on a lm_head wrapped by FSDP fails in ``unshard`` ("data is not allocated yet"): FSDP leaves
  the output layer to the root module, which on one process costs nothing. Its parameters then keep ``training.dtype``,
  so train in bfloat16 where activations are bfloat16. (``trunc_normal_`` of torch 2.11 draws values of ±2 in bfloat16
  where the deviation is 0.02, so the first loss is far above log(vocabulary). It costs no time.)
* ``varlen_attn`` knows neither ``num_splits`` nor ``enable_gqa``: dropped. Its kernel takes fewer key and value heads
  than query heads without being told.
"""

import importlib.util
import inspect
import sys
import types


def _unusable(name: str):
    def refuse(*args, **kwargs):
        raise RuntimeError(f"{name} is a stand-in: it is not installed on this machine")

    return refuse


def install() -> bool:
    """Put the stand-ins in place, before anything of torchtitan is imported; True if torch is such an old one."""
    import torch.distributed.fsdp as fsdp

    old = not hasattr(fsdp, "DataParallelMeshDims")
    if old:
        fsdp.DataParallelMeshDims = type("DataParallelMeshDims", (), {"__init__": _unusable("DataParallelMeshDims")})
    if importlib.util.find_spec("datasets") is None:
        datasets = types.ModuleType("datasets")
        datasets.Dataset = type("Dataset", (), {})
        datasets.IterableDataset = type("IterableDataset", (), {})
        datasets.load_dataset = _unusable("datasets.load_dataset")
        distributed = types.ModuleType("datasets.distributed")
        distributed.split_dataset_by_node = _unusable("datasets.distributed.split_dataset_by_node")
        datasets.distributed = distributed
        sys.modules.update({"datasets": datasets, "datasets.distributed": distributed})
    if old:
        _leave_head_to_root()
    _drop_unknown_attention_options()
    return old


def _leave_head_to_root() -> None:
    import torchtitan.distributed.fsdp as titan_fsdp

    shard = titan_fsdp.fully_shard
    titan_fsdp.fully_shard = lambda module, **options: module if isinstance(module, list) else shard(module, **options)


def _drop_unknown_attention_options() -> None:
    import torchtitan.models.common.attention as attention

    varlen = attention.varlen_attn
    unknown = {"num_splits", "enable_gqa"} - set(inspect.signature(varlen).parameters)

    def without_unknown(*args, **options):
        return varlen(*args, **{name: value for name, value in options.items() if name not in unknown})

    if unknown:
        attention.varlen_attn = without_unknown
