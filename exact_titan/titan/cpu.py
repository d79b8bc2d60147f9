"""The patches that let torchtitan 0.3.0 train on CPU processes with gloo.

Without an accelerator torchtitan 0.3.0 assumes CUDA. All patches are in this file. Call :func:`install` before
torchtitan is imported, if possible. :func:`install` also corrects the device constants that imported modules have
already copied. On a machine with an accelerator :func:`install` does nothing.
"""

import functools
import os
import resource
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

_GIB = 1024**3


class CpuMemoryMonitor:
    """Replaces torchtitan's device memory monitor. Reports the peak resident memory of this process.

    The peak covers the time since the start of the process. The kernel keeps a single high-water mark, so a reset has
    no effect.
    """

    device_name = "cpu"

    def __init__(self) -> None:
        self.capacity_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB

    def get_peak_stats(self):
        from torchtitan.components.metrics import DeviceMemStats

        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
        percent = 100 * peak_gib / self.capacity_gib
        return DeviceMemStats(peak_gib, percent, peak_gib, percent, 0, 0)

    def reset_peak_stats(self) -> None:
        pass


def install() -> bool:
    """Make torchtitan use the CPU if torch finds no accelerator.

    Repeated calls are allowed.

    Returns:
        True if torchtitan now uses the CPU.
    """
    if torch.accelerator.is_available():
        return False

    from torchtitan.components import metrics
    from torchtitan.distributed import fsdp
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.protocols.module import Module
    from torchtitan.tools import utils

    if utils.device_type == "cpu":
        return True
    for name, module in list(sys.modules.items()):
        if name.startswith("torchtitan."):
            if getattr(module, "device_type", None) == "cuda":
                module.device_type = "cpu"  # type: ignore[attr-defined]
            if getattr(module, "device_module", None) is torch.cuda:
                module.device_module = torch.cpu  # type: ignore[attr-defined]

    metrics.build_device_memory_monitor = CpuMemoryMonitor
    # A CPU has no published peak. With an infinite peak the MFU is 0. torchtitan would otherwise use an A100's peak.
    utils.get_peak_flops = lambda device_name: float("inf")
    dist_utils.set_pg_timeouts = _set_pg_timeouts
    Module._init_param = _same_on_any_number_of_ranks(Module._init_param)
    # DTensor warns for every random operator. The line above replaces the only use of random operators.
    warnings.filterwarnings("ignore", message="DTensor .* may not have complete support on cpu")
    fsdp.disable_fsdp_gradient_division = _with_sum_reduction(fsdp.disable_fsdp_gradient_division)
    return True


def _with_sum_reduction(disable_gradient_division):
    """Make FSDP reduce with SUM. FSDP uses PREMUL_SUM even for a division by 1, and gloo has no PREMUL_SUM."""
    from torch.distributed.fsdp import FSDPModule

    @functools.wraps(disable_gradient_division)
    def disable(model: nn.Module) -> None:
        disable_gradient_division(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)

    return disable


def _same_on_any_number_of_ranks(init_param):
    """Make every rank draw the full parameter and keep its shard. The result does not depend on the number of ranks.

    DTensor has no random number tracker for the CPU. Without this patch every rank draws the same numbers for its
    shard, and the rows of a weight repeat.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor
    from torchtitan.models.common.param_init import skip_param_init

    @functools.wraps(init_param)
    def init(self, name: str, param: nn.Parameter) -> None:
        if not isinstance(param, DTensor) or self._param_init.get(name) is skip_param_init:
            init_param(self, name, param)
            return
        whole = nn.Parameter(torch.empty(param.shape, dtype=param.dtype))
        init_param(self, name, whole)
        # src_data_rank=None: every rank has the data, so no rank sends data.
        param.copy_(distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None))

    return init


def _set_pg_timeouts(timeout: timedelta, parallel_dims) -> None:
    """Do the same as torchtitan's function, but without a device in the barrier, because gloo refuses the device."""
    dist.barrier()
    groups = [mesh.get_group() for mesh in parallel_dims.get_all_one_dimensional_meshes().values()]
    for group in [*groups, None]:
        dist.set_timeout(timeout, group)  # type: ignore[attr-defined]
