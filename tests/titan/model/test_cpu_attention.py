"""The operator of the CPU's document attention against torch's SDPA, one document at a time."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from exact_titan.titan.model.cpu_attention import document_sdpa

BORDERS = [0, 1, 8, 9, 80, 81]


def leaves(dtype: torch.dtype, kv_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(BORDERS[-1], heads, 16, dtype=dtype).requires_grad_() for heads in (4, kv_heads, kv_heads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_output_and_gradients_are_those_of_sdpa_bit_for_bit(dtype, kv_heads, scale):
    q, k, v = leaves(dtype, kv_heads)
    out, lse = document_sdpa(q, k, v, torch.tensor(BORDERS, dtype=torch.int32), scale)
    documents = []
    for start, end in pairwise(BORDERS):
        parts = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        documents.append(F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True, scale=scale)[0])
    expected = torch.cat(documents, dim=1).transpose(0, 1)
    assert torch.equal(out, expected)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gradient = torch.randn_like(out)
    ours, reference = (torch.autograd.grad(one, (q, k, v), gradient) for one in (out, expected))
    for one, other in zip(ours, reference, strict=True):
        assert torch.equal(one, other)


def test_the_operator_fulfils_the_contract_of_torch():
    """torch compares real and fake outputs, eager and traced gradients, and static and symbolic shapes."""
    inputs = [*leaves(torch.float64, 2), torch.tensor(BORDERS, dtype=torch.int32), None]
    torch.library.opcheck(document_sdpa, inputs)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    borders = torch.tensor([0, 2, 5])
    assert torch.autograd.gradcheck(lambda *qkv: document_sdpa(*qkv, borders, None)[0], (q, k, v))
