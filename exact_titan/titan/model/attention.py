"""Document attention: each token attends to the prefix of its own document. One config serves the CPU and CUDA."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch._dynamo
import torch.distributed as dist
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)
from torchtitan.models.common.attention import VarlenAttention, VarlenMetadata
from torchtitan.models.common.decoder import Decoder
from torchtitan.tools.logging import logger, warn_once

from exact_titan.errors import InputError
from exact_titan.titan.model import context_parallel
from exact_titan.titan.model.cpu_attention import document_sdpa

Implementation = Literal["auto", "fa3", "fa2", "torch"]
"""Values of the option ``attention``:

* ``auto``: on CUDA the first installed kernel of this list; on the CPU torch's SDPA, one document at a time;
* ``fa3``: FlashAttention 3, for Hopper GPUs: the module ``flash_attn_interface``, through torch's own switch;
* ``fa2``: FlashAttention 2 of the package ``flash-attn``;
* ``torch``: the FlashAttention 2 inside torch.
"""

Kernel = Literal["fa3", "fa2", "torch", "sdpa"]
"""The kernel of an :data:`Implementation`. ``sdpa`` is torch's SDPA, one document at a time, on any device."""

_PACKAGES = {
    "fa3": ("flash_attn_interface", "build it from the folder hopper of github.com/Dao-AILab/flash-attention"),
    "fa2": ("flash_attn", "pip install 'exact-titan[flash]'"),
}

# torch's switch calls the operator of fa3. Activation checkpointing saves the output of the operator of fa2.
_OPERATORS = {"fa3": "flash_attn_3::bwd", "fa2": "flash_attn::_flash_attn_varlen_forward"}


def unavailable(kernel: Kernel) -> str | None:
    """Return one line: why a kernel does not run on this machine, and the way out. None if the kernel runs."""
    if kernel == "sdpa":
        return None
    if not torch.cuda.is_available():
        return "that needs a CUDA GPU, and this machine has none: use a machine with a GPU"
    if kernel == "torch":
        return None
    module, remedy = _PACKAGES[kernel]
    if not _installed(kernel):
        return f"{module} is not installed: {remedy}"
    if kernel == "fa3" and (torch.version.hip or torch.cuda.get_device_capability()[0] != 9):
        return "FlashAttention 3 is for Hopper GPUs, and this GPU is not a Hopper: use fa2 or torch"
    try:
        importlib.import_module(module)
    # These errors come from a package that was built for another torch or CUDA.
    except (ImportError, OSError, RuntimeError) as error:
        return f"{module} cannot be imported ({' '.join(str(error).split())}): {remedy}"
    if not hasattr(*_operator(kernel)):
        return f"{module} is too old, and does not register {_OPERATORS[kernel]}: {remedy}"
    return None


def _installed(kernel: Kernel) -> bool:
    return importlib.util.find_spec(_PACKAGES[kernel][0]) is not None


def _operator(kernel: Kernel) -> tuple[Any, str]:
    """Namespace and name of the operator of a package: the arguments of ``getattr``."""
    namespace, name = _OPERATORS[kernel].split("::")
    return getattr(torch.ops, namespace), name


def choose(implementation: Implementation) -> Kernel:
    """Return the kernel for this machine. The call needs no process group and no device.

    Raises:
        InputError: if the option names a kernel that does not run on this machine.
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
    """Name of the kernel for the log."""
    if kernel == "fa2":
        return f"flash-attn {importlib.import_module('flash_attn').__version__} (flash_attn package)"
    return {
        "fa3": "FlashAttention 3 (flash_attn_interface)",
        "torch": "torch's built-in FlashAttention 2",
        "sdpa": "torch's SDPA, one document at a time",
    }[kernel]


def set_implementation(config: Decoder.Config, implementation: Implementation) -> None:
    """Write the kernel of :func:`choose` into every document attention of a model.

    Raises:
        InputError: as :func:`choose`. Also if the option names a kernel, and the model has another attention.
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


def varlen_metadata(cu_seqlens: torch.Tensor, max_seqlen: int) -> VarlenMetadata:
    """Return torchtitan's varlen metadata for :class:`DocumentAttention`. A compiled graph does not depend on it.

    The number of documents and the length of the longest document are sizes of tensors, so torch.compile makes them
    symbols of the graph. A graph for a number would be compiled again for the next number. The host would wait for a
    tensor whose value is the length, because FSDP moves all inputs to the device.

    Args:
        cu_seqlens: int32 ``[n+1]``, document borders in the flattened batch, 0 to B*L, on the device of the inputs.
        max_seqlen: length of the longest document in the batch.
    """
    # The size is 2 or more: torch.compile makes a graph of its own for the sizes 0 and 1.
    longest: Any = cu_seqlens.new_empty(max_seqlen + 1, 0)
    for tensor in (cu_seqlens, longest):
        torch._dynamo.mark_dynamic(tensor, 0)
    return VarlenMetadata(cu_seq_q=cu_seqlens, cu_seq_k=cu_seqlens, max_q=longest, max_k=longest)


def longest_document(masks: VarlenMetadata) -> int:
    """Return the length of the longest document. torchtitan's own metadata has the number itself."""
    return masks.max_q.shape[0] - 1 if isinstance(masks.max_q, torch.Tensor) else masks.max_q


def forward_ops() -> dict[Kernel, Any]:
    """Return the operator of each loaded kernel in the forward pass."""
    ops: dict[Kernel, Any] = {
        "fa3": torch.ops.torch_attn._varlen_attn.default,
        "torch": torch.ops.torch_attn._varlen_attn.default,
        "sdpa": torch.ops.exact_titan.document_sdpa.default,
    }
    if hasattr(*_operator("fa2")):
        ops["fa2"] = getattr(*_operator("fa2")).default
    return ops


class DocumentAttention(VarlenAttention):
    """torchtitan's varlen attention with a choice of kernels on CUDA, and causal SDPA per document on the CPU.

    The class replaces :class:`VarlenAttention` in any torchtitan config: arguments, shapes and mask are the same. The
    ``attention_masks`` come from :func:`varlen_metadata` or from torchtitan. Tensors on the CPU always go through SDPA,
    because varlen kernels have no backward pass on the CPU.

    With a ``context_group`` the inputs and the output are this rank's part of the sequence, ``[B, L/n, N, H]``. The
    mask is the mask of the whole windows (:mod:`~exact_titan.titan.model.context_parallel`).
    """

    context_group: dist.ProcessGroup | None = None
    """The context-parallel group. Set by :func:`~exact_titan.titan.model.decoder.parallelize`."""

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        implementation: Implementation | Literal["sdpa"] = "auto"
        """Kernel on CUDA, see :data:`Implementation`."""

    def __init__(self, config: Config) -> None:
        # VarlenAttention's __init__ does not run: it chooses FlashAttention 3 or 4 by the GPU, and fails without them.
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
        """Return the attention output ``[B, L, N, H]`` in the dtype of ``q_BLNH``. See :class:`VarlenAttention`."""
        group = self.context_group
        options = {"attention_masks": attention_masks, "scale": scale, **kwargs}
        if group is None:
            return self._attend(q_BLNH, k_BLNH, v_BLNH, **options)
        heads = q_BLNH.shape[2]
        qkv = (context_parallel.to_heads(x_BLNH, group, heads=heads) for x_BLNH in (q_BLNH, k_BLNH, v_BLNH))
        return context_parallel.to_sequence(self._attend(*qkv, **options), group)

    def _attend(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: VarlenMetadata,
        scale: float | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the attention output ``[B, L, N, H]`` of whole windows."""
        attend: Callable[..., torch.Tensor]
        if self.kernel == "sdpa" or q_BLNH.device.type == "cpu":
            attend = self._sdpa
        elif self.kernel == "fa2":
            attend = self._flash_attn_2
        else:
            return self._varlen(q_BLNH, k_BLNH, v_BLNH, attention_masks=attention_masks, scale=scale, **kwargs)
        kwargs.pop("enable_gqa", None)  # these kernels compare the numbers of key heads and query heads
        unknown = [name for name, value in kwargs.items() if value is not None]
        if unknown:
            raise NotImplementedError(f"{', '.join(unknown)}: not supported by {describe(self.kernel)}")
        q_TNH, k_TNH, v_TNH = (x.flatten(0, 1) for x in (q_BLNH, k_BLNH, v_BLNH))
        return attend(q_TNH, k_TNH, v_TNH, attention_masks, scale).unflatten(0, q_BLNH.shape[:2])

    def _varlen(
        self, q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, v_BLNH: torch.Tensor, *, attention_masks: Any, **options: Any
    ) -> torch.Tensor:
        longest = longest_document(attention_masks)
        masks = attention_masks._replace(max_q=longest, max_k=longest)
        return super().forward(q_BLNH, k_BLNH, v_BLNH, attention_masks=masks, **options)

    def _sdpa(
        self,
        q_TNH: torch.Tensor,
        k_TNH: torch.Tensor,
        v_TNH: torch.Tensor,
        masks: VarlenMetadata,
        scale: float | None,
    ) -> torch.Tensor:
        if self.window_size != (-1, 0):
            raise NotImplementedError(f"attention window {self.window_size}: SDPA supports only causal (-1, 0)")
        return document_sdpa(q_TNH, k_TNH, v_TNH, masks.cu_seq_q, scale)[0]

    def _flash_attn_2(
        self,
        q_TNH: torch.Tensor,
        k_TNH: torch.Tensor,
        v_TNH: torch.Tensor,
        masks: VarlenMetadata,
        scale: float | None,
    ) -> torch.Tensor:
        longest = longest_document(masks)
        # bfloat16 for every input dtype, as in torchtitan.
        out_TNH = self.flash_attn_varlen_func(
            *(x.to(torch.bfloat16) for x in (q_TNH, k_TNH, v_TNH)),
            masks.cu_seq_q,
            masks.cu_seq_k.view(-1),  # another tensor: torch.compile refuses one tensor as two inputs here
            longest,
            longest,
            softmax_scale=scale,
            causal=self.window_size[1] == 0,
            window_size=self.window_size,
            # flash-attn does not read this setting, but torch's own kernel does.
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out_TNH.to(q_TNH.dtype)


@functools.cache
def _log_once(description: str) -> None:
    # The header of the run names the kernel on the screen.
    logger.info(f"Attention: {description}", extra={"file_only": True})
