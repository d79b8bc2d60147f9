"""The one place that knows how torch versions differ for torchtitan 0.3.0."""

import torch.distributed as dist

SPMD_BACKEND = "partial_dtensor"
"""Runs on torch 2.13 to 2.15; torchtitan's own default, ``spmd_types``, needs torch 2.14."""


def install() -> None:
    """Give torch 2.13 the public name of its own function, which torchtitan calls after the first step."""
    if not hasattr(dist, "set_timeout"):
        dist.set_timeout = dist.distributed_c10d._set_pg_timeout  # type: ignore[attr-defined]
