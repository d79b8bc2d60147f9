"""Checks that the GPU gives the results of the CPU tests, and that the host never waits for the GPU in the loss.

Each check returns ``passed`` (None: this device cannot run the check) and the measured figures. Every check draws its
inputs from a fixed seed. Activations are bfloat16 on CUDA, as in training.
"""

import random
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper
from torchtitan.distributed import utils as dist_utils
from torchtitan.distributed.activation_checkpoint import FullAC

from benchmarks.step import SHAPES, STOCK, WARMUP_ROUNDS, Side, build_sides, random_trainer, run_step, synchronize
from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.dataset import PackedDataset
from exact_titan.exposure import RULES, Buckets, Targets, effective_context
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.attention import (
    DocumentAttention,
    Kernel,
    choose,
    describe,
    forward_ops,
    unavailable,
    varlen_metadata,
)
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from exact_titan.titan.model.flops import attention_flops, attention_pairs
from exact_titan.titan.torch_versions import SPMD_BACKEND
from exact_titan.titan.trainer import ExactTrainer

Check = tuple[str, Callable[[], tuple[bool | None, str]]]


@dataclass
class Outcome:
    """The result of a check."""

    name: str
    passed: bool | None
    detail: str


def part_checks(shape: str, device: torch.device, *, seq_len: int) -> Iterator[Outcome]:
    """Run all checks of the parts, with the width and vocabulary of ``SHAPES[shape]`` and windows of ``seq_len``."""
    dist_utils.set_spmd_backend(SPMD_BACKEND)
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(
            Path(folder) / "packed",
            window=seq_len,
            windows=8,
            lengths=mixed_lengths(seq_len),
            vocab_size=SHAPES[shape]["vocab_size"],
        )
        case = LossCase(dataset, shape, device)
        checks: list[Check] = [
            ("buckets are equal on the device and on the CPU", lambda: check_buckets(seq_len, device)),
            ("alpha = 0 equals torchtitan's loss, bit for bit", lambda: check_equal(case, alpha=0.0)),
            ("rule standard equals torchtitan's loss, bit for bit", lambda: check_equal(case, rule="standard")),
            ("exact against float64", lambda: check_weighted(case)),
            ("bucket counts are equal on the device and on the CPU", lambda: check_counts(case)),
            ("the slots of every rule are equal on the device and on the CPU", lambda: check_slots(case)),
            *(
                (f"the loss with the rule {name} does not wait for the device", partial(check_no_sync, case, rule=name))
                for name in RULES
            ),
            (
                "the loss with refresh_steps=1 does not wait for the device",
                lambda: check_no_sync(case, refresh_steps=1),
            ),
            ("no document sees another", lambda: check_isolation(shape, device, seq_len)),
        ]
        for kernel in kernels(device):
            checks += [
                (
                    f"document attention, {kernel}, against a dense mask",
                    partial(check_attention, kernel, shape, device, min(seq_len, 4096)),
                ),
                (
                    f"selective checkpointing runs {kernel} once",
                    partial(check_checkpointing, kernel, device),
                ),
            ]
        for name, check in checks:
            yield attempt(name, check)


def attempt(name: str, check: Callable[[], tuple[bool | None, str]]) -> Outcome:
    """Return the outcome of the check. An exception is a failed outcome, so later checks still run."""
    try:
        return Outcome(name, *check())
    except Exception:
        return Outcome(name, False, traceback.format_exc())


class LossCase:
    """The hidden states, labels and output layer of one window, as the input of a loss."""

    def __init__(self, dataset: Path, shape: str, device: torch.device) -> None:
        torch.manual_seed(0)
        dim, vocab_size = SHAPES[shape]["dim"], SHAPES[shape]["vocab_size"]
        self.dataset, self.device = dataset, device
        window = PackedDataset(dataset)[0]
        self.labels_BL, self.positions_BL = window["labels"][None].to(device), window["positions"][None].to(device)
        # Ignore some targets, as padding does.
        self.labels_BL[:, ::97] = IGNORE_INDEX
        self.valid = (self.labels_BL != IGNORE_INDEX).sum()
        self.hidden_BLD = torch.randn(*self.labels_BL.shape, dim, device=device, dtype=torch.bfloat16)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False, device=device, dtype=torch.bfloat16)

    def exact(self, **options: Any) -> ExactLoss:
        loss = ExactLoss.Config(dataset_path=str(self.dataset), **options).build()
        loss.set_lm_head(self.lm_head)
        loss.to(self.device)
        # The trainer sets these two values before a microbatch.
        loss.places_B = torch.tensor([12_345], device=self.device)
        loss.divisor = self.valid.to(torch.float32)
        return loss

    def stock(self) -> ChunkedLossWrapper:
        loss = ChunkedLossWrapper.Config().build()
        loss.set_lm_head(self.lm_head)
        return loss

    def run(self, loss: ChunkedLossWrapper, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """Run forward and backward as in the trainer."""
        value, _ = loss(hidden_BLD, self.labels_BL, self.valid, positions=self.positions_BL)
        value.backward()
        return value

    def gradients(self, loss: ChunkedLossWrapper) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss, and its gradients in the hidden states and in the output layer."""
        self.lm_head.weight.grad = None
        hidden_BLD = self.hidden_BLD.clone().requires_grad_()
        value = self.run(loss, hidden_BLD)
        return value.detach(), hidden_BLD.grad, self.lm_head.weight.grad


def check_buckets(seq_len: int, device: torch.device) -> tuple[bool, str]:
    context = torch.arange(seq_len + 1)
    buckets = Buckets(seq_len)
    wrong = int((buckets.index(context.to(device)).cpu() != buckets.index(context)).sum())
    return wrong == 0, f"{wrong} of {len(context)} contexts in a different bucket"


def check_equal(case: LossCase, **options: Any) -> tuple[bool, str]:
    """Check that loss and gradients equal torchtitan's chunked cross-entropy.

    Two runs of torchtitan's cross-entropy must be equal, too.
    """
    first, again, exact = (case.gradients(loss) for loss in (case.stock(), case.stock(), case.exact(**options)))
    names = ("loss", "gradient of the hidden states", "gradient of the output layer")
    repeats = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    unequal = [name for name, a, b in zip(names, first, exact, strict=True) if not torch.equal(a, b)]
    found = f"unequal: {', '.join(unequal) or 'nothing'}; loss {first[0].item():.6f}"
    return repeats and not unequal, found + (
        "" if repeats else "; two runs of torchtitan's own loss differ on this device"
    )


def check_weighted(case: LossCase) -> tuple[bool, str]:
    """Compare loss and gradients of the weighted loss with the plain formula in float64, chunk by chunk."""
    exact = case.exact()
    weights_BL = exact.weights_n[exact.buckets.index(effective_context(case.positions_BL))].double()
    head_VD = case.lm_head.weight.detach().double().requires_grad_()
    hidden_LD = case.hidden_BLD[0].double().requires_grad_()
    total = 0.0
    for start in range(0, len(hidden_LD), 512):
        rows = slice(start, start + 512)
        ce = nn.functional.cross_entropy(
            hidden_LD[rows] @ head_VD.T, case.labels_BL[0, rows], reduction="none", ignore_index=IGNORE_INDEX
        )
        part = (ce * weights_BL[0, rows]).sum() / case.valid
        part.backward()
        total += part.item()
    value, hidden_gradient, head_gradient = case.gradients(exact)
    errors = {
        "loss": abs(value.item() - total) / total,
        "gradient of the hidden states": relative_error(hidden_gradient[0], hidden_LD.grad),
        "gradient of the output layer": relative_error(head_gradient, head_VD.grad),
    }
    detail = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    unweighted = case.gradients(case.stock())[0].item()
    detail += f"; the plain loss is {unweighted:.6f}, the weighted one {total:.6f}"
    return errors["loss"] < 1e-3 and max(errors.values()) < 2e-2, f"relative errors: {detail}"


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    reference = reference.double()
    return ((value.double() - reference).norm() / reference.norm()).item()


def check_counts(case: LossCase) -> tuple[bool, str]:
    """Targets per bucket, as counted by the loss for the metrics and for a refresh."""
    loss = case.exact(refresh_steps=1)
    case.gradients(loss)
    index = loss.buckets.index(effective_context(case.positions_BL.cpu()))
    expected = torch.bincount(index[case.labels_BL.cpu() != IGNORE_INDEX], minlength=len(loss.buckets))
    counted = loss.counter.counts.cpu()
    equal = torch.equal(counted, expected) and torch.equal(loss.sums.sums_2n[1].cpu(), expected.double())
    return equal, f"{int(expected.sum())} targets, {counted.tolist()}"


def check_slots(case: LossCase) -> tuple[bool, str]:
    """Compare the slots of every rule, also the drawn slots of ``random``, with the slots on the CPU."""
    unequal = []
    for name in RULES:
        loss = case.exact(rule=name)
        here = Targets(
            loss.buckets.index(effective_context(case.positions_BL)), loss.buckets, loss.counts, loss.places_B, seed=3
        )
        there = Targets(
            here.context_BL.cpu(), loss.buckets, loss.counts.to(torch.device("cpu")), loss.places_B.cpu(), 3
        )
        if not torch.equal(loss.rule.slot(here).cpu(), loss.rule.slot(there)):
            unequal.append(name)
    return not unequal, f"unequal: {', '.join(unequal) or 'nothing'}"


def check_no_sync(case: LossCase, **options: Any) -> tuple[bool | None, str]:
    """Run the loss forward and backward while torch raises at every operation that waits for the device."""
    if case.device.type != "cuda":
        return None, "needs CUDA"
    loss = case.exact(**options)
    case.gradients(loss)  # the first call moves buffers and makes handles
    hidden_BLD = case.hidden_BLD.clone().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(loss, hidden_BLD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True, "no waiting operation"


@dataclass
class AttentionCase:
    """Queries, keys and values of one batch row, and the borders of the row's documents."""

    q_BLNH: torch.Tensor
    k_BLNH: torch.Tensor
    v_BLNH: torch.Tensor
    borders: list[int]

    @classmethod
    def draw(cls, shape: str, device: torch.device, seq_len: int) -> "AttentionCase":
        model = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def random(heads: int) -> torch.Tensor:
            size = (1, seq_len, heads, model["dim"] // model["n_heads"])
            return torch.randn(size, generator=generator).to(device, dtype).requires_grad_()

        inner = np.random.default_rng(0).choice(np.arange(2, seq_len), size=7, replace=False)
        # The first document has 1 token.
        borders = [0, 1, *sorted(inner.tolist()), seq_len]
        return cls(random(model["n_heads"]), random(model["n_kv_heads"]), random(model["n_kv_heads"]), borders)

    def attention(self, kernel: Kernel) -> Callable[[], torch.Tensor]:
        """Return the attention of these inputs by a kernel: :class:`DocumentAttention` as the model calls it."""
        device = self.q_BLNH.device
        longest = max(end - start for start, end in zip(self.borders, self.borders[1:], strict=False))
        masks = varlen_metadata(torch.tensor(self.borders, dtype=torch.int32, device=device), longest)
        attention = DocumentAttention.Config(implementation=kernel).build()
        return partial(attention, self.q_BLNH, self.k_BLNH, self.v_BLNH, attention_masks=masks, enable_gqa=True)


def kernels(device: torch.device) -> list[Kernel]:
    """Return the kernels that a run on this device can select. On the CPU, add the kernels of a run on CUDA."""
    return [kernel for kernel in get_args(Kernel) if kernel != "sdpa" or device.type == "cpu"]


def missing(kernel: Kernel, device: torch.device) -> str | None:
    """Return the reason why a kernel cannot run on this machine; ``None`` if the kernel can run."""
    return "needs CUDA" if device.type == "cpu" and kernel != "sdpa" else unavailable(kernel)


def check_attention(kernel: Kernel, shape: str, device: torch.device, seq_len: int) -> tuple[bool | None, str]:
    """Compare output and gradients with attention under an explicit mask, in float64 on the same inputs."""
    reason = missing(kernel, device)
    if reason is not None:
        return None, reason
    case = AttentionCase.draw(shape, device, seq_len)
    tensors = (case.q_BLNH, case.k_BLNH, case.v_BLNH)
    out = case.attention(kernel)()
    seed = torch.randn_like(out)
    gradients = torch.autograd.grad(out, tensors, seed)

    q, k, v = (t.detach().double().requires_grad_() for t in tensors)
    group = q.shape[2] // k.shape[2]
    scores = torch.einsum("blnh,bmnh->bnlm", q, k.repeat_interleave(group, 2)) / q.shape[3] ** 0.5
    document = torch.bucketize(
        torch.arange(seq_len, device=device), torch.tensor(case.borders, device=device), right=True
    )
    mask = (document[:, None] == document[None, :]).tril()
    reference = torch.einsum(
        "bnlm,bmnh->blnh", scores.masked_fill(~mask, -torch.inf).softmax(-1), v.repeat_interleave(group, 2)
    )
    references = (reference, *torch.autograd.grad(reference, (q, k, v), seed.double()))
    errors = {
        name: relative_error(a, b)
        for name, a, b in zip(("output", "dq", "dk", "dv"), (out, *gradients), references, strict=True)
    }
    limit = 1e-2 if device.type == "cuda" else 1e-5
    detail = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return max(errors.values()) < limit, f"relative errors, limit {limit}: {detail}"


def check_isolation(shape: str, device: torch.device, seq_len: int) -> tuple[bool, str]:
    """Check that changed keys and values in one document do not change the output of other documents, bit for bit."""
    case = AttentionCase.draw(shape, device, seq_len)
    with torch.no_grad():
        run = case.attention(choose("auto"))
        before = run()
        start, end = case.borders[3], case.borders[4]
        for tensor in (case.k_BLNH, case.v_BLNH):
            tensor[:, start:end] += 1
        after = run()
    changed = (before != after).flatten(2).any(-1)[0]
    inside = int(changed[start:end].sum())
    outside = int(changed.sum()) - inside
    return outside == 0 and inside > 0, f"{outside} positions changed outside the document, {inside} inside it"


class Operators(TorchDispatchMode):
    """Counts the calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def check_checkpointing(kernel: Kernel, device: torch.device) -> tuple[bool | None, str]:
    """Count the forward passes of a kernel in a step of one layer on one document, by activation checkpointing."""
    reason = missing(kernel, device)
    if reason is not None:
        return None, reason
    sizes = LlamaSizes(dim=128, n_layers=1, n_heads=2, n_kv_heads=2)
    config = decoder_spec(sizes.architecture(seq_len=64, tokenizer_vocab=50)).model
    config.layers[0].attention.inner_attention.implementation = kernel
    tokens, positions = torch.zeros(1, 64, dtype=torch.int64, device=device), torch.arange(64, device=device)[None]
    masks = varlen_metadata(torch.tensor([0, 64], dtype=torch.int32, device=device), 64)
    runs = []
    for policy in (AttentionSavingAC.Config(), FullAC.Config()):
        model = config.build()
        policy.build(dump_folder="").apply(model)
        model.to(device)
        with torch.no_grad():
            model.init_states()
        with Operators() as operators:
            model(tokens, positions, masks).sum().backward()
        runs.append(operators.counts[forward_ops()[kernel]])
    return runs == [1, 2], f"{runs[0]} runs with selective, {runs[1]} with full checkpointing"


def time_attention(shape: str, device: torch.device, *, seq_len: int, rounds: int) -> dict[str, Any]:
    """Time a forward and a backward pass of every kernel that runs on this machine.

    The order of the kernels changes every round. A pass is one layer's attention with the heads of ``SHAPES[shape]``,
    over one window of nine documents.
    """
    case = AttentionCase.draw(shape, device, seq_len)
    tensors = (case.q_BLNH, case.k_BLNH, case.v_BLNH)
    seed = torch.randn_like(case.q_BLNH)
    model = SHAPES[shape]
    pairs = attention_pairs(end - start for start, end in pairwise(case.borders))
    flops = attention_flops(pairs, n_layers=1, n_heads=model["n_heads"], head_dim=model["dim"] // model["n_heads"])
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in kernels(device) if missing(kernel, device) is None}
    for number in range(WARMUP_ROUNDS + rounds):
        for kernel in random.Random(number).sample(list(seconds), len(seconds)):
            run = case.attention(kernel)  # also sets torch's switch for the whole process
            synchronize(device)
            start = time.perf_counter()
            torch.autograd.grad(run(), tensors, seed)
            synchronize(device)
            if number >= WARMUP_ROUNDS:
                seconds[kernel].append(time.perf_counter() - start)
    medians = {kernel: statistics.median(times) for kernel, times in seconds.items()}
    return {
        "model": shape,
        "seq_len": seq_len,
        "documents": len(case.borders) - 1,
        "flops": flops,
        "kernels": [
            {
                "kernel": kernel,
                "description": describe(kernel),
                "seconds": seconds[kernel],
                "median_seconds": median,
                "tflops": flops / median / 1e12,
            }
            for kernel, median in medians.items()
        ],
        "missing": {kernel: missing(kernel, device) for kernel in kernels(device) if kernel not in seconds},
    }


def attention_table(result: dict[str, Any]) -> str:
    """Return the times of :func:`time_attention` as text."""
    lines = [
        f"attention of one layer, forward and backward, windows of {result['seq_len']} with {result['documents']} "
        f"documents, {len(result['kernels'][0]['seconds'])} rounds"
    ]
    for row in result["kernels"]:
        lines.append(f"{row['description']:48}{row['median_seconds'] * 1e3:>9.3f} ms{row['tflops']:>9.1f} TFLOP/s")
    lines += [f"{kernel:48}{reason}" for kernel, reason in result["missing"].items()]
    return "\n".join(lines)


def step_checks(shape: str, *, steps: int, **options: Any) -> Iterator[Outcome]:
    """Run the checks of a whole trainer: the loss falls, and no extra operation waits for the device.

    ``options`` are the arguments of :func:`random_trainer`.
    """
    compiled = ", compiled" if options.get("compiled") else ""
    with random_trainer(shape, windows=1, **options) as trainer:
        batch = next(iter(trainer.dataloader))
        sides = {side.name: side for side in build_sides(trainer)}
        exact, refreshed, stock = sides["exact"], sides["exact, refresh_steps=1"], sides[STOCK]
        checks: list[Check] = [
            ("repeated training on one window lowers its loss", lambda: check_learning(trainer, exact, batch, steps)),
            ("a step waits no more often than torchtitan's step", lambda: check_waits(trainer, exact, stock, batch)),
            (
                "a step with refresh_steps=1 waits no more often than torchtitan's step",
                lambda: check_waits(trainer, refreshed, stock, batch),
            ),
        ]
        for name, check in checks:
            yield attempt(name + compiled, check)


def check_learning(trainer: ExactTrainer, side: Side, batch: Any, steps: int) -> tuple[bool, str]:
    """Check that the plain cross-entropy of one window falls when every step trains on this window."""
    values = []
    for _ in range(steps):
        run_step(trainer, side, batch)
        ce, count = side.loss.sums.take().sum(dim=1).tolist()
        values.append(ce / count)
    return values[-1] < values[0] - 0.5, f"{values[0]:.4f} at first, {values[-1]:.4f} at step {steps}"


def check_waits(trainer: ExactTrainer, side: Side, stock: Side, batch: Any) -> tuple[bool | None, str]:
    """Compare the waiting operations of a whole step with the waiting operations of a cross-entropy step."""
    if trainer.device.type != "cuda":
        return None, "needs CUDA"
    for one in (stock, side):
        run_step(trainer, one, batch)
    of_stock, of_side = waits(trainer, stock, batch), waits(trainer, side, batch)
    more = Counter(of_side) - Counter(of_stock)
    detail = f"{len(of_side)} against {len(of_stock)}: {dict(Counter(of_stock))}; extra: {dict(more) or 'none'}"
    return len(of_side) <= len(of_stock), detail


def waits(trainer: ExactTrainer, side: Side, batch: Any) -> list[str]:
    """Return the Python line of every operation in one step that waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_step(trainer, side, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [(Path(one.filename), one.lineno) for one in caught if "synchronizing" in str(one.message)]
    return [f"{path.parent.name}/{path.name}:{line}" for path, line in places]
