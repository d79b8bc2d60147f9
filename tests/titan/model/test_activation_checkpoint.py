"""How often attention runs in a training step under activation checkpointing."""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from exact_titan.config import load_config
from exact_titan.titan.model.activation_checkpoint import AttentionSavingAC
from exact_titan.titan.model.attention import DocumentAttention, forward_ops, set_implementation, varlen_metadata
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from tests.titan.model import flash_attn_stand_in

LAYERS = 2
SDPA = "exact_titan.document_sdpa.default"
FLASH_ATTN = "flash_attn._flash_attn_varlen_forward.default"


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def train_once(policy, spec_config) -> tuple[Counter[str], list[torch.Tensor]]:
    """Return the operators and the gradients of a forward and a backward pass over one window of three documents."""
    model = spec_config.build()
    torch.manual_seed(0)
    model.init_states()
    if policy is not None:
        policy.build(dump_folder="").apply(model)
    tokens = torch.randint(256, (1, 64))
    positions = torch.cat([torch.arange(20), torch.arange(20), torch.arange(24)])[None]
    borders = torch.tensor([0, 20, 40, 64], dtype=torch.int32)
    with Operators() as operators:
        model(tokens, positions, varlen_metadata(borders, 24)).square().mean().backward()
    return operators.counts, [parameter.grad for parameter in model.parameters()]


def small_llama():
    sizes = LlamaSizes(dim=32, n_layers=LAYERS, n_heads=4, n_kv_heads=2, ffn_dim=64)
    return decoder_spec(sizes.architecture(seq_len=64, tokenizer_vocab=256)).model


@pytest.fixture
def flash_attn_2(monkeypatch):
    """A small Llama with the replacement for flash-attn. The replacement takes CPU tensors."""
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_stand_in.module())
    monkeypatch.setattr(DocumentAttention, "_sdpa", DocumentAttention._flash_attn_2)
    config = small_llama()
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        set_implementation(config, "fa2")
    monkeypatch.setattr("exact_titan.titan.model.attention.choose", lambda implementation: implementation)
    return config


@pytest.mark.parametrize(
    ("policy", "runs"),
    [(None, 1), (AttentionSavingAC.Config(), 1), (FullAC.Config(), 2), (SelectiveAC.Config(), 2)],
    ids=["none", "ours", "full", "torchtitan"],
)
def test_selective_checkpointing_runs_the_cpus_attention_once(policy, runs):
    counts, gradients = train_once(policy, small_llama())
    assert counts[SDPA] == runs * LAYERS
    for one, other in zip(gradients, train_once(None, small_llama())[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("policy", "runs"),
    [(None, 1), (AttentionSavingAC.Config(), 1), (FullAC.Config(), 2), (SelectiveAC.Config(), 2)],
    ids=["none", "ours", "full", "torchtitan"],
)
def test_selective_checkpointing_runs_flash_attn_once(flash_attn_2, policy, runs):
    """The replacement for the package checks that checkpointing saves the output of the right operator name."""
    counts, gradients = train_once(policy, flash_attn_2)
    assert counts[FLASH_ATTN] == runs * LAYERS
    assert counts[SDPA] == 0
    for one, other in zip(gradients, train_once(None, flash_attn_2)[1], strict=True):
        assert torch.equal(one, other)


def test_the_operator_of_torchs_own_kernel_and_flash_attention_3_is_saved():
    policy = AttentionSavingAC.Config().build(dump_folder="")
    assert str(forward_ops()["torch"]) == str(forward_ops()["fa3"]) == "torch_attn._varlen_attn.default"
    assert forward_ops()["torch"] in policy.get_save_ops()
    assert policy.get_save_ops() > SelectiveAC.Config().build(dump_folder="").get_save_ops()


@pytest.mark.parametrize("options", [[], ["activation_checkpoint:selective"]])
def test_selective_checkpointing_saves_attention_in_recipes_and_on_the_command_line(options):
    config = load_config(["--config", "from_scratch", *options])
    assert type(config.activation_checkpoint) is AttentionSavingAC.Config
