"""The traced memory equals the memory of a real run, and follows from the sizes of the model."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torchtitan.distributed import utils as dist_utils
from torchtitan.distributed.activation_checkpoint import FullAC

from exact_titan.config_registry import from_scratch
from exact_titan.planning import kernels
from exact_titan.planning.memory import MemoryPlan, plan_memory
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from tests.support import ROOT, run_benchmark, torchrun

SIZES = LlamaSizes(dim=128, n_layers=3, n_heads=8, n_kv_heads=2, ffn_dim=320, vocab_size=1024, tie_embeddings=False)
SEQ_LEN = 512
TOKENS = 2 * SEQ_LEN


def plan(
    checkpointing: str = "selective",
    *,
    nproc: int = 8,
    microbatches: int = 1,
    n_layers: int = SIZES.n_layers,
    decay: float = 0.0,
    **options,
) -> MemoryPlan:
    config = from_scratch()
    config.training = dataclasses.replace(config.training, seq_len=SEQ_LEN, local_batch_size=2)
    config.ema.decay = decay
    config.parallelism = dataclasses.replace(config.parallelism, **options)
    config.activation_checkpoint = {
        "none": None,
        "selective": config.activation_checkpoint,
        "full": FullAC.Config(),
    }[checkpointing]
    sizes = dataclasses.replace(SIZES, n_layers=n_layers)
    spec = decoder_spec(sizes.architecture(seq_len=SEQ_LEN, tokenizer_vocab=0))
    return plan_memory(spec, config, nproc=nproc, microbatches=microbatches, documents=[128] * 8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> list[dict]:
    """Measure and plan real steps in one CPU process with ``benchmarks.plan``."""
    out = tmp_path_factory.mktemp("measured") / "plan.json"
    run_benchmark("benchmarks.plan", "--small", "--dtypes", "bfloat16", "--json", out)
    return json.loads(out.read_text())


def test_states_equal_the_states_of_a_real_run_to_the_byte(measured):
    assert [result["kind"] for result in measured] == ["none", "selective", "full"]
    for result in measured:
        for line in ("parameters", "gradients", "optimizer state"):
            assert result["lines"][line]["planned"] == result["lines"][line]["measured"]


def test_saved_activations_equal_those_of_a_real_run_within_a_tenth(measured):
    for result in measured:
        line = result["lines"]["after the forward pass"]
        assert line["planned"] == pytest.approx(line["measured"], rel=0.1)


def test_every_peak_equals_the_peak_of_a_real_run_within_one_percent(measured):
    for result in measured:
        for phase in ("forward", "loss", "backward", "peak"):
            assert result["lines"][phase]["planned"] == pytest.approx(result["lines"][phase]["measured"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("degree", "kind"), [("--context", "selective"), ("--tensor", "full")])
def test_the_peak_of_two_ranks_of_one_window_equals_that_of_a_real_run_within_five_percent(degree, kind, tmp_path):
    command = ["-m", "benchmarks.plan", "--models", "narrow", "--seq-len", "512", "--dtypes", "float32"]
    done = torchrun(2, *command, "--kinds", kind, degree, "2", "--json", str(tmp_path / "plan.json"), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "plan.json").read_text())
    assert (result["processes"], result["kind"]) == (2, kind)
    for line in ("parameters", "gradients", "optimizer state"):
        assert result["lines"][line]["planned"] == result["lines"][line]["measured"]
    for line in ("forward", "loss", "backward", "peak"):
        assert result["lines"][line]["planned"] == pytest.approx(result["lines"][line]["measured"], rel=0.05)


@pytest.mark.parametrize("nproc", [1, 8])
def test_states_are_sharded_over_the_gpus(nproc):
    memory = plan(nproc=nproc)
    assert memory.num_parameters == SIZES.architecture(seq_len=SEQ_LEN, tokenizer_vocab=0).num_parameters()
    share = 4 * memory.num_parameters / nproc
    # Every tensor is rounded up to blocks of 512 bytes.
    assert memory.parameters == pytest.approx(share, rel=0.01)
    assert memory.gradients == pytest.approx(share, rel=0.01)
    assert memory.optimizer == pytest.approx(2 * share, rel=0.05)


def test_a_moving_average_is_one_more_float32_shard():
    memory, without = plan(decay=0.99, n_layers=1), plan(n_layers=1)
    assert memory.most["average"] == without.parameters
    assert "average" not in without.most
    assert memory.peak.bytes == without.peak.bytes + without.parameters


def test_replicas_hold_the_states_once_each():
    memory = plan(nproc=8, data_parallel_replicate_degree=4)
    assert memory.parameters == plan(nproc=2).parameters


def test_checkpointing_saves_fewer_activations_and_recomputes():
    plans = {kind: plan(kind) for kind in ("none", "selective", "full")}
    saved = {kind: memory.after_forward["activations"] for kind, memory in plans.items()}
    assert saved["none"] > 2 * saved["selective"] > 2 * saved["full"]
    # Saved in bfloat16: the input of each block, and the input and output of the last norm. Ids and borders are small.
    assert saved["full"] == pytest.approx((SIZES.n_layers + 2) * TOKENS * SIZES.dim * 2, rel=0.05)
    assert plans["none"].matmul_flops == pytest.approx(plans["none"].flops_per_token * TOKENS, rel=0.01)
    assert plans["none"].matmul_flops < plans["selective"].matmul_flops < plans["full"].matmul_flops
    assert [memory.attention_forwards for memory in plans.values()] == [3, 3, 6]


def test_without_checkpointing_a_block_saves_what_cudas_kernels_need():
    dim, ffn, heads, kv_heads = SIZES.dim, SIZES.ffn_dim, SIZES.n_heads, SIZES.n_kv_heads
    head_dim = dim // heads
    bytes_of_a_token = (
        2 * (2 * dim + 4)  # both norms: bfloat16 input and float32 scale
        + 2 * 2 * dim  # the outputs of the norms, which are the inputs of the projections
        + 2 * (heads + 2 * kv_heads) * head_dim  # query, key and value
        + 4 * head_dim  # float32 cosines and sines
        + 2 * heads * head_dim
        + 4 * heads  # the output of attention, and its float32 log-sum-exp
        + 2 * 4 * ffn  # gate before and after SiLU, up projection, product of gate and up projection
    )
    more, fewer = (plan("none", n_layers=n).after_forward["activations"] for n in (4, 3))
    assert more - fewer == pytest.approx(bytes_of_a_token * TOKENS, rel=0.001)


def test_logits_of_one_chunk():
    # The logits in bfloat16. In float32: the softmax, the gradient of the loss, and the gradient of the logits.
    assert plan().most["logits"] == (2 + 3 * 4) * TOKENS // 8 * SIZES.vocab_size


def test_later_microbatches_find_gradients():
    one, two = plan(), plan(microbatches=2)
    assert two.peaks[0].bytes == one.peaks[0].bytes + one.gradients


def test_flash_attention_workspace_in_the_backward_pass():
    def call(kv_heads: int) -> int:
        query, key = torch.empty(100, 8, 48, dtype=torch.bfloat16), torch.empty(100, kv_heads, 48)
        borders = torch.empty(4, dtype=torch.int32)
        args = (None, query, key, None, None, None, borders)
        return kernels.workspace(torch.ops.torch_attn._varlen_attn_backward.default, args)

    sums = (100 + 3 * 128) * 8 * (64 + 1) * 4
    assert call(8) == sums
    assert call(2) == sums + 2 * 100 * 8 * 48 * 2
    assert kernels.workspace(torch.ops.aten.mm.default, ()) == 0


def test_a_plan_leaves_no_global_state():
    backend = dist_utils.get_spmd_backend()
    plan()
    assert not dist.is_initialized()
    assert dist_utils.get_spmd_backend() == backend


def test_an_existing_process_group_is_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="there is one already"):
        plan()


def test_an_error_leaves_no_process_group(monkeypatch):
    config = from_scratch()
    spec = SimpleNamespace(model=None)
    with pytest.raises(AttributeError):
        plan_memory(spec, config, nproc=2, microbatches=1, documents=[2048])  # type: ignore[arg-type]
    assert not dist.is_initialized()
