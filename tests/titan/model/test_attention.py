import math
import sys
import types
from importlib.machinery import ModuleSpec
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from torchtitan.models.common.attention import VarlenAttention, create_varlen_metadata_for_document

import exact_titan.titan.model.attention as attention_module
from exact_titan.errors import InputError
from exact_titan.titan.compiled_graphs import graphs
from exact_titan.titan.model.attention import (
    DocumentAttention,
    _log_once,
    choose,
    longest_document,
    set_implementation,
    varlen_metadata,
)
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from tests.titan.model import flash_attn_stand_in


def positions_of(rows: list[list[int]]) -> torch.Tensor:
    """Return ``positions`` [B, L] for rows of document lengths."""
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def dense_reference(q, k, v, positions):
    """Return attention with a dense mask, in float64: the keys of the same document that are not later."""
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
    known = varlen_metadata(borders, 64)
    assert torch.equal(searched.cu_seq_q, borders)
    assert searched.max_q == longest_document(searched) == longest_document(known) == 64
    attention = DocumentAttention.Config().build()
    assert torch.equal(attention(q, k, v, attention_masks=searched), attention(q, k, v, attention_masks=known))


@pytest.fixture
def model():
    sizes = LlamaSizes(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64)
    spec = decoder_spec(sizes.architecture(seq_len=64, tokenizer_vocab=256))
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


def test_a_missing_mask_changes_the_logits(model):
    """The tests above can fail: with one mask over both documents, the logits of the second document change."""
    positions = positions_of([[25, 39]])
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    packed = logits(model, tokens, positions)
    with torch.no_grad():
        unmasked = model(tokens, positions, varlen_metadata(torch.tensor([0, 64]), 64))
    assert not torch.allclose(packed[:, 25:], unmasked[:, 25:], atol=1e-3)


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes torch report a GPU, and flash_attn importable (a replacement) or not. No kernel runs."""

    def report(capability: tuple[int, int], *, flash_attn: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        if flash_attn:
            monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_stand_in.module())

    for module in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, module, None)
    _log_once.cache_clear()
    return report


@pytest.fixture
def flash_attn_3(gpu, monkeypatch):
    """A replacement for FlashAttention 3 and for torch's switch: the list of the implementations switched to."""
    switched: list[str | None] = [None]
    package = types.ModuleType("flash_attn_interface")
    package.__spec__ = ModuleSpec("flash_attn_interface", None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    monkeypatch.setitem(attention_module._OPERATORS, "fa3", "aten::linear")
    monkeypatch.setattr(attention_module, "activate_flash_attention_impl", switched.append)
    monkeypatch.setattr(attention_module, "restore_flash_attention_impl", lambda: switched.append(None))
    monkeypatch.setattr(attention_module, "current_flash_attention_impl", lambda: switched[-1])
    return switched


def said(caplog) -> list[str]:
    return [message for message in caplog.messages if message.startswith("Attention")]


def test_on_hopper_flash_attention_3_is_taken_when_it_is_installed(gpu, flash_attn_3, caplog):
    caplog.set_level("INFO")
    gpu((9, 0), flash_attn=True)
    for _ in range(2):
        assert DocumentAttention.Config().build().kernel == "fa3"
    assert flash_attn_3 == [None, "FA3"]
    assert said(caplog) == ["Attention: FlashAttention 3 (flash_attn_interface)"]
    # torch's switch applies to the whole process. Another choice resets the switch.
    assert DocumentAttention.Config(implementation="torch").build().kernel == "torch"
    assert flash_attn_3 == [None, "FA3", None]


@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
def test_on_other_gpus_flash_attn_2_is_taken_when_it_is_installed(gpu, flash_attn_3, caplog, capability):
    caplog.set_level("INFO")
    gpu(capability, flash_attn=True)
    assert DocumentAttention.Config().build().kernel == "fa2"
    assert said(caplog)[-1] == "Attention: flash-attn 2.8.3 (flash_attn package)"
    assert flash_attn_3 == [None]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_without_packages_torchs_own_kernel_is_taken(gpu, caplog, capability):
    caplog.set_level("INFO")
    gpu(capability, flash_attn=False)
    assert choose("auto") == "torch"
    assert DocumentAttention.Config().build().kernel == "torch"
    assert said(caplog) == ["Attention: torch's built-in FlashAttention 2"]


def test_a_flash_attn_that_does_not_load_is_named_and_skipped(gpu, monkeypatch, caplog, tmp_path):
    gpu((8, 0), flash_attn=False)
    monkeypatch.delitem(sys.modules, "flash_attn")
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined\\nsymbol')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert choose("auto") == "torch"
    assert "not fa2: flash_attn cannot be imported (flash_attn_2_cuda.so: undefined symbol)" in caplog.text
    with pytest.raises(InputError, match="undefined symbol"):
        choose("fa2")


def test_a_flash_attn_without_operators_is_refused(gpu, monkeypatch):
    gpu((8, 0), flash_attn=True)
    monkeypatch.setitem(attention_module._OPERATORS, "fa2", "flash_attn::not_there")
    with pytest.raises(
        InputError, match=r"too old, .*not_there: pip install 'exact-titan\[flash\]', or set it to auto"
    ):
        choose("fa2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fa2", r"attention is fa2, but flash_attn is not installed: pip install 'exact-titan\[flash\]', or set it "),
        ("fa3", r"attention is fa3, but flash_attn_interface is not installed: build it .*hopper"),
    ],
)
def test_a_kernel_given_by_name_must_be_installed(gpu, name, message):
    gpu((9, 0), flash_attn=False)
    with pytest.raises(InputError, match=message) as caught:
        choose(name)
    assert "\n" not in str(caught.value)


def test_a_flash_attention_3_that_torch_cannot_switch_to_is_skipped(gpu, flash_attn_3, monkeypatch, caplog):
    gpu((9, 0), flash_attn=False)
    monkeypatch.setitem(attention_module._OPERATORS, "fa3", "flash_attn_3::bwd")
    assert choose("auto") == "torch"
    assert "not fa3: flash_attn_interface is too old, and does not register flash_attn_3::bwd" in caplog.text


def test_flash_attention_3_is_refused_on_another_gpu(gpu, flash_attn_3):
    gpu((8, 0), flash_attn=False)
    with pytest.raises(InputError, match="attention is fa3, but FlashAttention 3 is for Hopper GPUs"):
        choose("fa3")


@pytest.mark.parametrize("name", ["fa3", "fa2", "torch"])
def test_without_a_gpu_only_auto_works(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto") == "sdpa"
    with pytest.raises(InputError, match=f"attention is {name}, but that needs a CUDA GPU.* set it to auto"):
        choose(name)


def test_a_model_with_another_attention_is_unchanged_or_refused(gpu):
    gpu((8, 0), flash_attn=True)
    own = SimpleNamespace(attention=SimpleNamespace(inner_attention=VarlenAttention.Config()))
    ours = SimpleNamespace(attention=SimpleNamespace(inner_attention=DocumentAttention.Config()))
    set_implementation(SimpleNamespace(layers=[own, ours]), "auto")
    assert ours.attention.inner_attention.implementation == "fa2"
    with pytest.raises(InputError, match="the model has its own attention, VarlenAttention"):
        set_implementation(SimpleNamespace(layers=[own]), "torch")


@pytest.fixture
def flash_attn_2(gpu, monkeypatch):
    """Document attention through the replacement for flash-attn, on CPU tensors."""
    gpu((8, 0), flash_attn=True)
    attention = DocumentAttention.Config(implementation="fa2").build()
    monkeypatch.undo()
    monkeypatch.setattr(DocumentAttention, "_sdpa", DocumentAttention._flash_attn_2)
    return attention


@pytest.mark.parametrize("rows", [[[64]], [[30, 34], [64]], [[7] * 9 + [1], [1] * 64]])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_flash_attn_2_is_called_for_the_same_attention(flash_attn_2, rows, kv_heads):
    """The replacement for the package checks the arguments. It does not check the values of the kernels."""
    torch.manual_seed(0)
    positions = positions_of(rows)
    q = torch.randn(*positions.shape, 4, 8, requires_grad=True)
    k, v = (torch.randn(*positions.shape, kv_heads, 8, requires_grad=True) for _ in range(2))
    starts = (positions.flatten() == 0).nonzero().flatten().tolist()
    borders = torch.tensor([*starts, positions.numel()], dtype=torch.int32)
    masks = varlen_metadata(borders, max(map(max, rows)))
    out = flash_attn_2(q, k, v, attention_masks=masks, enable_gqa=kv_heads < 4)
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    rounded = [x.detach().bfloat16().float().requires_grad_() for x in (q, k, v)]
    expected = dense_reference(*rounded, positions)
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    gradient = torch.randn_like(out)
    reference = torch.autograd.grad(expected, rounded, gradient.double())
    for one, other in zip(torch.autograd.grad(out, (q, k, v), gradient), reference, strict=True):
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)
    scaled = flash_attn_2(q, k, v, attention_masks=masks, scale=1.0, enable_gqa=kv_heads < 4)
    factor = math.sqrt(q.shape[-1])
    torch.testing.assert_close(
        scaled.double(), dense_reference(rounded[0] * factor, *rounded[1:], positions), rtol=1e-2, atol=2e-2
    )


def test_flash_attn_2_is_deterministic_when_torch_is(flash_attn_2):
    x = torch.randn(1, 4, 1, 8)
    masks = varlen_metadata(torch.tensor([0, 4], dtype=torch.int32), 4)
    for wanted in (True, False):
        torch.use_deterministic_algorithms(wanted)
        try:
            flash_attn_2(x, x, x, attention_masks=masks)
        finally:
            torch.use_deterministic_algorithms(False)
        assert flash_attn_stand_in.module().deterministic is wanted


def test_an_option_that_only_torchs_kernel_knows_is_refused():
    x = torch.randn(1, 4, 1, 8)
    masks = varlen_metadata(torch.tensor([0, 4]), 4)
    with pytest.raises(NotImplementedError, match="out_transform: not supported by torch's SDPA"):
        DocumentAttention.Config().build()(x, x, x, attention_masks=masks, out_transform=lambda out, lse: out)


def test_a_sliding_window_is_refused_on_the_cpu():
    attention = DocumentAttention.Config(window_size=(16, 0)).build()
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(NotImplementedError, match="16, 0"):
        attention(x, x, x, attention_masks=varlen_metadata(torch.tensor([0, 4]), 4))


@pytest.mark.parametrize("kernel", ["sdpa", "fa2"])
def test_one_compiled_graph_serves_all_documents(kernel, request):
    attention = request.getfixturevalue("flash_attn_2") if kernel == "fa2" else DocumentAttention.Config().build()
    torch._dynamo.reset()
    before = graphs()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    for row in ([64], [30, 34], [1] * 64, [7] * 9 + [1], [60, 4]):
        borders = torch.tensor([0, *accumulate(row)], dtype=torch.int32)
        masks = varlen_metadata(borders, max(row))
        q, k, v = (torch.randn(1, 64, heads, 8, requires_grad=True) for heads in (4, 2, 2))
        out, expected = (one(q, k, v, attention_masks=masks, enable_gqa=True) for one in (compiled, attention))
        assert torch.equal(out, expected)
        gradient = torch.randn_like(out)
        ours, reference = (torch.autograd.grad(one, (q, k, v), gradient) for one in (out, expected))
        for one, other in zip(ours, reference, strict=True):
            assert torch.equal(one, other)
    assert graphs() - before == 1
