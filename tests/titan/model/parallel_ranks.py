"""The program of four ranks in tests: context-parallel attention and the tensor-parallel loss against float64.

    tests.titan.model.parallel_ranks OUT.json

OUT has a list of results. A result has the name of its case, and the largest distances from the values of a reference
in float64 that one process computes alone.
"""

import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torchtitan.components.loss import IGNORE_INDEX

from exact_titan.titan.cross_entropy import weighted_cross_entropy
from exact_titan.titan.model.attention import DocumentAttention, varlen_metadata
from exact_titan.titan.model.context_parallel import SequenceShard

DOCUMENTS = [5, 19, 1, 23, 30, 18]
"""Documents of two windows of 48 tokens. No document ends at the border of a part."""

HEADS, HEAD_DIM = 12, 4
KEY_HEADS = (1, 2, 3, 4, 6, 12)
VOCABULARY = 257


def attention(group: dist.ProcessGroup, ranks: int, key_heads: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the distances of the output and of the gradients of attention, over the largest value of the reference."""
    generator = torch.Generator().manual_seed(key_heads)

    def random(heads: int) -> torch.Tensor:
        return torch.randn(2, 48, heads, HEAD_DIM, dtype=torch.float64, generator=generator)

    whole = [random(HEADS).to(dtype), random(key_heads).to(dtype), random(key_heads).to(dtype)]
    upstream = random(HEADS).to(dtype)
    borders = (0, *accumulate(DOCUMENTS))
    masks = varlen_metadata(torch.tensor(borders, dtype=torch.int32), max(DOCUMENTS))
    module = DocumentAttention(DocumentAttention.Config(implementation="sdpa"))
    module.context_group = group
    shard = SequenceShard(dist.get_rank(group), ranks)
    parts = [shard.of(x).clone().requires_grad_() for x in whole]
    out = module(*parts, attention_masks=masks, enable_gqa=key_heads < HEADS)
    out.backward(shard.of(upstream))
    found = {"output": out, **{name: part.grad for name, part in zip("qkv", parts, strict=True)}}
    return {name: _distance(found[name], shard.of(x)) for name, x in _reference(whole, upstream).items()}


def _reference(whole: list[torch.Tensor], upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output and the gradients of attention in float64, by its definition, one query head after another."""
    q, k, v = (x.double().requires_grad_() for x in whole)
    position = torch.arange(96)
    document = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    visible = (document[:, None] == document) & (position[:, None] >= position)
    heads = []
    for head in range(HEADS):
        query, key, value = (x[:, :, head * x.shape[2] // HEADS].reshape(96, HEAD_DIM) for x in (q, k, v))
        scores = (query @ key.T / HEAD_DIM**0.5).masked_fill(~visible, -torch.inf)
        heads.append((scores.softmax(-1) @ value).view(2, 48, HEAD_DIM))
    out = torch.stack(heads, dim=2)
    out.backward(upstream.double())
    return {"output": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}  # type: ignore[dict-item]


def loss(ranks: int, spread: float) -> dict[str, float]:
    """Return the distances of the tensor-parallel loss with weights. ``spread``: standard deviation of the logits.

    Returns:
        ``loss``, over the loss. ``cross_entropy``, over the largest cross-entropy. ``gradient``, over the weight of the
        target. ``full_gradient``: the same distance of the loss of one process in float32. ``from_full``: the distance
        of these two gradients.
    """
    generator = torch.Generator().manual_seed(ranks)
    logits = spread * torch.randn(2, 48, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, (2, 48), generator=generator)
    labels[0, 7:20] = labels[1, 40:] = IGNORE_INDEX
    weights = 1 + 30 * torch.rand(2, 48, generator=generator)

    exact = logits.double().requires_grad_()
    valid = labels != IGNORE_INDEX
    expected = torch.where(valid, -exact.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    (expected * weights.double()).sum().backward()
    assert exact.grad is not None

    mesh = init_device_mesh("cpu", (ranks,))
    rank = dist.get_rank()
    part = logits.chunk(ranks, dim=-1)[rank].clone().requires_grad_()
    divided = DTensor.from_local(part, mesh, [Shard(2)], shape=logits.shape, stride=logits.stride())
    value, cross_entropy = weighted_cross_entropy(divided, labels, weights)
    value.backward()
    full = logits.clone().requires_grad_()
    weighted_cross_entropy(full, labels, weights)[0].backward()
    assert part.grad is not None
    assert full.grad is not None
    scale = weights[..., None].double()
    return {
        "loss": abs(value.item() / (expected.detach() * weights.double()).sum().item() - 1),
        "cross_entropy": _distance(cross_entropy, expected.detach()),
        "gradient": ((part.grad - exact.grad.chunk(ranks, dim=-1)[rank]) / scale).abs().max().item(),
        "full_gradient": ((full.grad - exact.grad) / scale).abs().max().item(),
        "from_full": ((part.grad - full.grad.chunk(ranks, dim=-1)[rank]) / scale).abs().max().item(),
    }


def _distance(found: Any, expected: torch.Tensor) -> float:
    return ((found.detach().double() - expected).abs().max() / expected.abs().max()).item()


def main(out: str) -> None:
    dist.init_process_group("gloo")
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in (2, 3, 4)}
    results: list[dict[str, Any]] = []
    for ranks, group in groups.items():
        if dist.get_rank() >= ranks:
            continue
        for key_heads in KEY_HEADS:
            for dtype in (torch.float64, torch.float32):
                name = f"attention on {ranks} ranks, {key_heads} key heads, {str(dtype).removeprefix('torch.')}"
                results.append({"name": name, **attention(group, ranks, key_heads, dtype)})
    for spread in (1, 4):
        results.append({"name": f"loss of logits of {spread}", **loss(dist.get_world_size(), spread)})
    every: list[list[dict[str, Any]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, results)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps([one for rank in every for one in rank]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
