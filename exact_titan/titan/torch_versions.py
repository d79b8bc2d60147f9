"""The differences between torch versions for torchtitan 0.3.0. No other file handles such a difference."""

import torch.distributed as dist

SPMD_BACKEND = "partial_dtensor"
"""This backend runs on torch 2.13 to 2.15. torchtitan's default, ``spmd_types``, needs torch 2.14."""


def install() -> None:
    """Add ``set_timeout`` to torch 2.13, which has the function only under a private name.

    torchtitan calls ``set_timeout`` after the first step.
    """
    if not hasattr(dist, "set_timeout"):
        dist.set_timeout = dist.distributed_c10d._set_pg_timeout  # type: ignore[attr-defined]
