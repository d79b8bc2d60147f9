"""Document attention: every token attends to its own document's prefix, on the CPU and on CUDA from the same config."""

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)
from torchtitan.models.common.attention import VarlenAttention, VarlenMetadata
from torchtitan.models.common.decoder import Decoder
from torchtitan.tools.logging import logger, warn_once

from exact_titan.errors import InputError

Implementation = Literal["auto", "fa3", "fa2", "torch"]
"""Attention kernels to ask for:

* ``auto``: on CUDA the first of the others that is there; on the CPU torch's SDPA, one document at a time;
* ``fa3``: FlashAttention 3, for Hopper GPUs: the module ``flash_attn_interface``, through torch's own switch;
* ``fa2``: FlashAttention 2 of the package ``flash-attn``;
* ``torch``: the FlashAttention 2 that torch brings along.
"""

Kernel = Literal["fa3", "fa2", "torch", "sdpa"]
"""What an :data:`Implementation` comes down to; ``sdpa`` is torch's SDPA, one document at a time, on any device."""

_PACKAGES = {
    "fa3": ("flash_attn_interface", "build it from the folder hopper of github.com/Dao-AILab/flash-attention"),
    "fa2": ("flash_attn", "pip install 'exact-titan[flash]'"),
}

# torch's switch calls fa3's; activation checkpointing saves the output of fa2's.
_OPERATORS = {"fa3": "flash_attn_3::bwd", "fa2": "flash_attn::_flash_attn_varlen_forward"}


def unavailable(kernel: Kernel) -> str | None:
    """Why a kernel does not run here and the way out, on one line; None if it does."""
    if kernel == "sdpa":
        return None
    if not torch.cuda.is_available():
        return "that needs a CUDA GPU, and there is none: use one"
    if kernel == "torch":
        return None
    module, remedy = _PACKAGES[kernel]
    if not _installed(kernel):
        return f"{module} is not installed: {remedy}"
    if kernel == "fa3" and (torch.version.hip or torch.cuda.get_device_capability()[0] != 9):
        return "FlashAttention 3 is for Hopper GPUs, and this is none: take fa2 or torch"
    try:
        importlib.import_module(module)
    # What a package raises that was built for another torch or CUDA.
    except (ImportError, OSError, RuntimeError) as error:
        return f"{module} cannot be imported ({' '.join(str(error).split())}): {remedy}"
    if not hasattr(*_operator(kernel)):
        return f"{module} is too old, it does not register {_OPERATORS[kernel]}: {remedy}"
    return None


def _installed(kernel: Kernel) -> bool:
    return importlib.util.find_spec(_PACKAGES[kernel][0]) is not None


def _operator(kernel: Kernel) -> tuple[Any, str]:
    """The operator of a package, as arguments for ``getattr``."""
    namespace, name = _OPERATORS[kernel].split("::")
    return getattr(torch.ops, namespace), name


def choose(implementation: Implementation) -> Kernel:
    """The kernel that runs on this machine. May be asked for before anything is set up.

    Raises:
        InputError: if another than ``auto`` is asked for that does not run here.
    """
    if implementation != "auto":
        reason = unavailable(implementation)
        if reason is not None:
            raise InputError(f"attention is {implementation}, but {reason}, or set it to auto")
        return implementation
    if not torch.cuda.is_available():
        return "sdpa"
    newer: tuple[Kernel, ...] = ("fa3", "fa2")
    for kernel in newer:
        reason = unavailable(kernel)
        if reason is None:
            return kernel
        if _installed(kernel):
            warn_once(logger, f"Attention: not {kernel}: {reason}")
    return "torch"


def describe(kernel: Kernel) -> str:
    """The kernel in words, for the log."""
    if kernel == "fa2":
        return f"flash-attn {importlib.import_module('flash_attn').__version__} (flash_attn package)"
    return {
        "fa3": "FlashAttention 3 (flash_attn_interface)",
        "torch": "torch's built-in FlashAttention 2",
        "sdpa": "torch's SDPA, one document at a time",
    }[kernel]


def set_implementation(config: Decoder.Config, implementation: Implementation) -> None:
    """Write the kernel that :func:`choose` gives into every document attention of a model.

    Raises:
        InputError: as :func:`choose`; and for a model with another attention, unless the choice is left to it.
    """
    kernel = choose(implementation)
    for layer in config.layers:
        inner = layer.attention.inner_attention
        if isinstance(inner, DocumentAttention.Config):
            inner.implementation = kernel
        elif implementation != "auto":
            raise InputError(
                f"attention is {implementation}, but the model has its own attention, {type(inner).__qualname__}: "
                f"set it to auto"
            )


def varlen_metadata(cu_seqlens: torch.Tensor, max_seqlen: int, host_offsets: tuple[int, ...] | None) -> VarlenMetadata:
    """torchtitan's varlen metadata from what the loader knows, so that nothing is searched for on the device.

    Args:
        cu_seqlens: int32 ``[n+1]``, document borders in the flattened batch, 0 to B*L, on the device of the inputs.
        max_seqlen: length of the longest document in the batch, on the host.
        host_offsets: ``cu_seqlens`` on the host; only the CPU path reads it.
    """
    return VarlenMetadata(
        cu_seq_q=cu_seqlens, cu_seq_k=cu_seqlens, max_q=max_seqlen, max_k=max_seqlen, cu_seq_q_host=host_offsets
    )


def forward_ops() -> dict[Kernel, Any]:
    """The operator that each kernel's forward pass dispatches, of the kernels that are loaded."""
    ops: dict[Kernel, Any] = {
        "fa3": torch.ops.torch_attn._varlen_attn.default,
        "torch": torch.ops.torch_attn._varlen_attn.default,
        "sdpa": torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
    if hasattr(*_operator("fa2")):
        ops["fa2"] = getattr(*_operator("fa2")).default
    return ops


class DocumentAttention(VarlenAttention):
    """torchtitan's varlen attention with a choice of kernels on CUDA; on the CPU causal SDPA per document.

    Takes the place of :class:`VarlenAttention` in any torchtitan config: arguments, shapes and mask are the same.
    Tensors on the CPU, which has no backward for varlen kernels, always go through SDPA.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        implementation: Implementation | Literal["sdpa"] = "auto"
        """Kernel on CUDA, see :data:`Implementation`."""

    def __init__(self, config: Config) -> None:
        # Past VarlenAttention's, which asks for FlashAttention 3 or 4 by the GPU alone and fails where it is missing.
        super(VarlenAttention, self).__init__()
        self.window_size = config.window_size
        self.kernel: Kernel = "sdpa" if config.implementation == "sdpa" else choose(config.implementation)
        if self.kernel == "fa3":
            if current_flash_attention_impl() != "FA3":
                activate_flash_attention_impl("FA3")
        elif self.kernel == "torch" and current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        elif self.kernel == "fa2":
            self.flash_attn_varlen_func = importlib.import_module("flash_attn").flash_attn_varlen_func
        _log_once(describe(self.kernel))

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: VarlenMetadata,
        scale: float | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output ``[B, L, N, H]`` in the dtype of ``q_BLNH``; see :class:`VarlenAttention`."""
        if self.kernel == "sdpa" or q_BLNH.device.type == "cpu":
            run = self._sdpa
        elif self.kernel == "fa2":
            run = self._flash_attn_2
        else:
            return super().forward(q_BLNH, k_BLNH, v_BLNH, attention_masks=attention_masks, scale=scale, **kwargs)
        enable_gqa = kwargs.pop("enable_gqa", False)
        unknown = [name for name, value in kwargs.items() if value is not None]
        if unknown:
            raise NotImplementedError(f"{', '.join(unknown)}: not with {describe(self.kernel)}")
        return run(q_BLNH, k_BLNH, v_BLNH, attention_masks, scale, enable_gqa)

    def _sdpa(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        masks: VarlenMetadata,
        scale: float | None,
        enable_gqa: bool,
    ) -> torch.Tensor:
        if self.window_size != (-1, 0):
            raise NotImplementedError(f"attention window {self.window_size}: with SDPA only causal (-1, 0) is there")
        offsets = masks.cu_seq_q_host or tuple(masks.cu_seq_q.tolist())
        lengths = [end - start for start, end in pairwise(offsets)]
        # [T, N, H] -> [N, T, H], then one SDPA call a document.
        q_NTH, k_NTH, v_NTH = (x.flatten(0, 1).transpose(0, 1) for x in (q_BLNH, k_BLNH, v_BLNH))
        documents = zip(*(x.split(lengths, dim=1) for x in (q_NTH, k_NTH, v_NTH)), strict=True)
        out = [
            F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=enable_gqa
            )[0]
            for q, k, v in documents
        ]
        return torch.cat(out, dim=1).transpose(0, 1).unflatten(0, q_BLNH.shape[:2])

    def _flash_attn_2(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        masks: VarlenMetadata,
        scale: float | None,
        enable_gqa: bool,
    ) -> torch.Tensor:
        # In bfloat16 whatever comes in, as torchtitan's. Fewer key heads than query heads it takes without being told.
        q_TNH, k_TNH, v_TNH = (x.flatten(0, 1).to(torch.bfloat16) for x in (q_BLNH, k_BLNH, v_BLNH))
        out_TNH = self.flash_attn_varlen_func(
            q_TNH,
            k_TNH,
            v_TNH,
            masks.cu_seq_q,
            masks.cu_seq_k,
            masks.max_q,
            masks.max_k,
            softmax_scale=scale,
            causal=self.window_size[1] == 0,
            window_size=self.window_size,
            # torch's own kernel looks at this by itself.
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out_TNH.unflatten(0, q_BLNH.shape[:2]).to(q_BLNH.dtype)


@functools.cache
def _log_once(description: str) -> None:
    logger.info(f"Attention: {description}")
