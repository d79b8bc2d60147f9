"""Stand-ins that run torchtitan 0.3.0 in one process under torch 2.11, on a GPU machine without downloads.

The machine has a fixed image with torch 2.11 and CUDA, and no network. torchtitan and its small dependencies come as
wheels. exact_titan itself requires torch 2.13. This module is only for benchmarks on such a machine, so the module is
not part of the package. The module fixes four gaps of torch 2.11 or the image:

* ``torch.distributed.fsdp.DataParallelMeshDims`` is missing. torchtitan names this class in annotations and on code
  paths that ``spmd_backend="partial_dtensor"`` does not use. The stand-in fails on use.
* Hugging Face ``datasets`` with pyarrow is missing, because the package is too large to copy. torchtitan imports
  ``datasets`` for its own text dataloader, and the benchmarks do not use this dataloader. The stand-in fails on use.
* ``ChunkedLossWrapper`` on a lm_head wrapped by FSDP fails in ``unshard`` ("data is not allocated yet"). The module
  leaves the output layer to FSDP's root module. On one process, this change costs nothing. The parameters of the layer
  then keep ``training.dtype``, so the module casts the input of the layer. (In bfloat16, ``trunc_normal_`` of torch
  2.11 draws values of ±2 at a deviation of 0.02. The first loss is therefore far above log(vocabulary). The step time
  is not affected.)
* ``varlen_attn`` has no ``num_splits`` and no ``enable_gqa``. The module drops both arguments. The kernel accepts fewer
  key and value heads than query heads without ``enable_gqa``.
"""

import importlib.util
import inspect
import sys
import types


def _unusable(name: str):
    def refuse(*args, **kwargs):
        raise RuntimeError(f"{name} is a stand-in: {name} is not installed on this machine")

    return refuse


def install() -> bool:
    """Install the stand-ins. Call this function before any import of torchtitan. Return whether torch is too old."""
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

    def shard_all_but_head(module, **options):
        if not isinstance(module, list):
            return shard(module, **options)
        head = module[-1]
        head.register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.dtype), *args[1:]))
        return module

    titan_fsdp.fully_shard = shard_all_but_head


def _drop_unknown_attention_options() -> None:
    import torchtitan.models.common.attention as attention

    varlen = attention.varlen_attn
    unknown = {"num_splits", "enable_gqa"} - set(inspect.signature(varlen).parameters)

    def without_unknown(*args, **options):
        return varlen(*args, **{name: value for name, value in options.items() if name not in unknown})

    if unknown:
        attention.varlen_attn = without_unknown
