"""A record of the allocations of a traced step. Every tensor has a size, and no tensor has data."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Phase = Literal["forward", "loss", "backward", "optimizer"]
Kind = Literal[
    "parameters",
    "gradients",
    "optimizer",
    "average",
    "buffers",
    "activations",
    "gathered parameters",
    "gradients in flight",
    "logits",
    "working",
]

_MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


@dataclass(slots=True, eq=False)
class Allocation:
    """A storage: its current bytes, and the kind of its content, as far as the kind is known."""

    size: int
    kind: Kind


@dataclass(frozen=True)
class Peak:
    """The largest number of bytes at one time in a phase, and the bytes of every kind at that time."""

    phase: Phase
    bytes: int
    by_kind: dict[Kind, int]


class AllocationTrace(TorchDispatchMode):
    """Records every allocation and release inside its ``with`` block. The kinds are assigned later.

    This class finds storages and observes FSDP's resizes in the same way as torch's own trackers, ``MemTracker`` and
    ``FSDPMemTracker`` in ``torch.distributed._tools``. Torch's trackers cannot trace a step of this package, for two
    reasons:

    - Torch's trackers refuse a module that is called again outside the model's forward pass. The chunked loss calls
      the output layer in this way.
    - Torch's trackers assign the kind of a tensor when the tensor is made. Only later operations show whether a tensor
      is a gradient or is saved for the backward pass.

    Args:
        block: block size in bytes. An allocation is rounded up to blocks (512 with CUDA's caching allocator).
        label: a function that returns the kind of a new tensor, from the operator, the tensor and the phase.
        workspace: a function that returns the bytes that an operator allocates and releases inside its call, from the
            operator and its arguments.
    """

    def __init__(
        self,
        *,
        block: int,
        label: Callable[[Any, torch.Tensor, Phase], Kind],
        workspace: Callable[[Any, tuple], int],
    ) -> None:
        super().__init__()
        self._block = block
        self._label = label
        self._workspace = workspace
        self._alive: dict[int, tuple[weakref.ref, Allocation]] = {}
        self._events: list[tuple[Allocation, int]] = []
        self._phases: list[tuple[Phase, int]] = []
        self.calls: Counter[Any] = Counter()
        """Number of calls of each operator."""
        self.matmul_flops = 0
        """FLOPs of the matrix products, with recomputation."""

    def start(self, phase: Phase) -> None:
        """Start a phase. The working tensors that a forward phase leaves alive become activations."""
        if phase == "loss":
            self._name_activations()
        self._phases.append((phase, len(self._events)))

    def hold(self, tensor: torch.Tensor, kind: Kind) -> None:
        """Assign a kind to a tensor. The tensor may be new to the record."""
        for storage in get_untyped_storages(tensor):
            self._follow(storage, kind).kind = kind

    def before(self, phase: Phase) -> dict[Kind, int]:
        """Return the bytes of every kind at the start of a phase."""
        begin = dict(self._phases)[phase]
        by_kind: Counter[Kind] = Counter()
        for allocation, change in self._events[:begin]:
            by_kind[allocation.kind] += change
        return dict(by_kind)

    def held(self, kind: Kind) -> int:
        """Return the current bytes of this kind."""
        return sum(allocation.size for _, allocation in self._alive.values() if allocation.kind == kind)

    def most(self) -> dict[Kind, int]:
        """Return the largest number of bytes of each kind at any one time."""
        sizes: Counter[Kind] = Counter()
        most: Counter[Kind] = Counter()
        for allocation, change in self._events:
            kind = allocation.kind
            sizes[kind] += change
            most[kind] = max(most[kind], sizes[kind])
        return dict(most)

    def peaks(self) -> list[Peak]:
        """Return the peak of every phase, in the order of the phases."""
        peaks = []
        sizes = Counter(self.before(self._phases[0][0]))
        ends = [begin for _, begin in self._phases[1:]] + [len(self._events)]
        for (phase, begin), end in zip(self._phases, ends, strict=True):
            highest = Peak(phase, sizes.total(), dict(sizes))
            for allocation, change in self._events[begin:end]:
                sizes[allocation.kind] += change
                if sizes.total() > highest.bytes:
                    highest = Peak(phase, sizes.total(), dict(sizes))
            peaks.append(highest)
        return peaks

    def _name_activations(self) -> None:
        begin = self._phases[-1][1]
        new = {allocation for allocation, change in self._events[begin:] if change > 0}
        for _, allocation in self._alive.values():
            if allocation in new and allocation.kind == "working":
                allocation.kind = "activations"

    def _follow(self, storage: torch.UntypedStorage, kind: Kind) -> Allocation:
        key = storage._cdata
        known = self._alive.get(key)
        if known is not None:
            return known[1]
        allocation = Allocation(0, kind)
        self._alive[key] = (weakref.ref(storage, lambda _: self._release(key)), allocation)
        self._resize(allocation, storage.nbytes())
        return allocation

    def _release(self, key: int) -> None:
        self._resize(self._alive.pop(key)[1], 0)

    def _resize(self, allocation: Allocation, size: int) -> None:
        size = -(-size // self._block) * self._block
        if size != allocation.size:
            self._events.append((allocation, size - allocation.size))
            allocation.size = size

    def __enter__(self) -> "AllocationTrace":
        self._patch = _resizes_reported(self._resized)
        self._patch.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._patch.__exit__(*args)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._alive.get(storage._cdata)
        if known is not None:
            # FSDP frees and reallocates the storages of gathered parameters. Nothing else resizes a storage.
            known[1].kind = "gathered parameters"
            self._resize(known[1], storage.nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        self.calls[func] += 1
        if func in _MATRIX_PRODUCTS:
            self.matmul_flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        phase = self._phases[-1][0]
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._follow(storage, self._label(func, tensor, phase))
        if func is torch.ops.fsdp.all_gather_copy_in.default:
            self.hold(args[1], "gathered parameters")
        elif func is torch.ops.fsdp.chunk_cat.default:
            self.hold((kwargs or {})["out"], "gradients in flight")
        if inside := self._workspace(func, args):
            passing = Allocation(0, "working")
            self._resize(passing, inside)
            self._resize(passing, 0)
        return result


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _tensors(part)


@contextmanager
def _resizes_reported(report: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Replace ``UntypedStorage.resize_`` inside the context, because no dispatch mode observes this method."""
    original = torch.UntypedStorage.resize_

    @wraps(original)
    def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        resized = original(storage, size)
        report(storage)
        return resized

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]
