import math

import pytest
import torch
from torchtitan.models.common.attention import create_varlen_metadata_for_document

from exact_titan.titan.attention import DocumentAttention, varlen_metadata
from exact_titan.titan.models import LlamaArchitecture, llama_spec


def positions_of(rows: list[list[int]]) -> torch.Tensor:
    """``positions`` [B, L] of rows of document lengths."""
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def dense_reference(q, k, v, positions):
    """Softmax over a dense mask, in float64: same document, not later."""
    repeat = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, dim=2).double() for x in (k, v))
    document = (positions == 0).cumsum(1)
    length = positions.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (document[:, :, None] == document[:, None, :]) & causal
    scores = torch.einsum("blnh,bmnh->bnlm", q.double(), k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    return torch.einsum("bnlm,bmnh->blnh", scores.softmax(-1), v)


@pytest.mark.parametrize("rows", [[[64]], [[1, 1, 62]], [[30, 34], [64]], [[7] * 9 + [1], [1] * 64]])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_its_gradients_equal_a_dense_masked_reference(rows, kv_heads):
    torch.manual_seed(0)
    positions = positions_of(rows)
    batch, length = positions.shape
    q = torch.randn(batch, length, 4, 8, requires_grad=True)
    k, v = (torch.randn(batch, length, kv_heads, 8, requires_grad=True) for _ in range(2))
    metadata = create_varlen_metadata_for_document(positions)
    attention = DocumentAttention.Config().build()
    out = attention(q, k, v, attention_masks=metadata, enable_gqa=kv_heads < 4)
    expected = dense_reference(q, k, v, positions)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)

    gradient = torch.randn_like(out)
    ours = torch.autograd.grad(out, (q, k, v), gradient)
    reference = torch.autograd.grad(expected, (q, k, v), gradient.double())
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_metadata_from_the_host_gives_the_same_bits():
    torch.manual_seed(0)
    positions = positions_of([[20, 44], [64]])
    q, k, v = (torch.randn(2, 64, 2, 8) for _ in range(3))
    searched = create_varlen_metadata_for_document(positions)
    borders = torch.tensor([0, 20, 64, 128], dtype=torch.int32)
    known = varlen_metadata(borders, 64, (0, 20, 64, 128))
    assert torch.equal(searched.cu_seq_q, borders)
    assert searched.max_q == known.max_q
    attention = DocumentAttention.Config().build()
    assert torch.equal(attention(q, k, v, attention_masks=searched), attention(q, k, v, attention_masks=known))


@pytest.fixture
def model():
    spec = llama_spec(
        LlamaArchitecture(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64), seq_len=64, tokenizer_vocab=256
    )
    model = spec.model.build()
    torch.manual_seed(0)
    model.init_states()
    return model


def logits(model, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, positions, create_varlen_metadata_for_document(positions))


def test_changing_one_documents_tokens_leaves_the_others_logits_bit_equal(model):
    positions = positions_of([[25, 39]])
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, :25] = torch.randint(256, (25,), generator=torch.Generator().manual_seed(2))
    before, after = logits(model, tokens, positions), logits(model, changed, positions)
    assert torch.equal(before[0, 25:], after[0, 25:])
    assert not torch.equal(before[0, :25], after[0, :25])


def test_a_packed_window_equals_each_document_alone(model):
    positions = positions_of([[25, 39]])
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    packed = logits(model, tokens, positions)
    for start, end in ((0, 25), (25, 64)):
        alone = logits(model, tokens[:, start:end], positions[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-5, atol=1e-5)


def test_positions_reset_without_the_mask_would_be_noticed(model):
    """With one document's mask over both, the second document's logits move: the tests above can fail."""
    positions = positions_of([[25, 39]])
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    packed = logits(model, tokens, positions)
    with torch.no_grad():
        unmasked = model(tokens, positions, varlen_metadata(torch.tensor([0, 64]), 64, (0, 64)))
    assert not torch.allclose(packed[:, 25:], unmasked[:, 25:], atol=1e-3)


def test_on_a_hopper_gpu_without_flash_attention_3_it_is_built_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr("torchtitan.tools.utils.get_cuda_flash_attention_impl", lambda: "FA3")
    attention = DocumentAttention.Config().build()
    assert "FlashAttention 2, because the newer one is missing: No module named" in caplog.text
    x = torch.randn(1, 4, 1, 8)
    assert attention(x, x, x, attention_masks=varlen_metadata(torch.tensor([0, 4]), 4, (0, 4))).shape == x.shape


def test_a_sliding_window_is_refused_on_the_cpu():
    attention = DocumentAttention.Config(window_size=(16, 0)).build()
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(NotImplementedError, match="16, 0"):
        attention(x, x, x, attention_masks=varlen_metadata(torch.tensor([0, 4]), 4, (0, 4)))
