import dataclasses

import pytest
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.distributed.activation_checkpoint import MemoryBudgetAC

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.planning import run
from exact_titan.planning.run import plan_run
from tests.support import VOCAB, pack_lengths

TINY = {"training.seq_len": 256, "training.steps": 20, "architecture.dim": 64, "architecture.n_layers": 2}


def config(*options: str, vocab_size: int = 1000):
    sizes = [f"--{name}={value}" for name, value in {**TINY, "architecture.vocab_size": vocab_size}.items()]
    return load_config(["--config", "from_scratch", *sizes, *options])


def test_a_plan_needs_no_dataset():
    plan = plan_run(config("--training.global_batch_size", "8", "--dataloader.dataset_path", "not/there"), nproc=2)
    assert (plan.microbatches, plan.shards, plan.vocab_size) == (4, 2, 1000)
    assert plan.compute.tokens == 20 * 8 * 256
    assert plan.windows.source == ""


def test_a_dataset_gives_the_vocabulary_and_the_documents(tmp_path):
    dataset = pack_lengths(tmp_path, [100] * 40, seq_len=256)
    options = ("--dataloader.dataset_path", str(dataset.folder))
    packed, whole = plan_run(config(*options, vocab_size=0), nproc=2), plan_run(config(), nproc=2)
    assert packed.vocab_size == VOCAB
    assert packed.compute.attention_flops < 0.6 * whole.compute.attention_flops
    assert packed.windows.documents >= 3


def test_each_dataset_of_a_mixture_counts_by_its_share(tmp_path):
    short = pack_lengths(tmp_path / "short", [30] * 80, seq_len=256).folder
    long = pack_lengths(tmp_path / "long", [255] * 20, seq_len=256, seed=1).folder

    def flops(dataset_path) -> float:
        return plan_run(config("--dataloader.dataset_path", str(dataset_path)), nproc=1).compute.attention_flops

    assert flops(f"{short}=3,{long}=1") == pytest.approx((3 * flops(short) + flops(long)) / 4)


def test_a_dataset_of_another_window_is_refused(tmp_path):
    dataset = pack_lengths(tmp_path, [100] * 40, seq_len=128)
    with pytest.raises(InputError, match=r"windows of 128 tokens, but training\.seq_len is 256"):
        plan_run(config("--dataloader.dataset_path", str(dataset.folder)), nproc=1)


def test_a_run_with_compilation_is_planned_without_compilation():
    plan = plan_run(config("--compile.enable"), nproc=1)
    assert plan.config.compile.enable
    assert plan.memory == plan_run(config(), nproc=1).memory


def test_documents_fill_the_window():
    assert run._even(10, 3) == [3, 3, 4]
    assert run._even(10, 1) == [10]


@pytest.mark.parametrize(
    ("options", "nproc", "message"),
    [
        ((), 0, "--nproc is 0"),
        (("--training.global_batch_size", "6"), 4, "training.global_batch_size is 6"),
        (("--parallelism.data_parallel_replicate_degree", "3"), 8, "data_parallel_replicate_degree"),
        (("--parallelism.data_parallel_shard_degree", "4"), 8, "data_parallel_shard_degree"),
        (("--parallelism.tensor_parallel_degree", "3"), 8, "tensor_parallel_degree is 3"),
        (("--parallelism.context_parallel_degree", "16"), 16, r"context_parallel_degree is 16: .* query heads \(8\)"),
        (("--parallelism.tensor_parallel_degree", "8"), 8, r"tensor_parallel_degree is 8: .* key heads \(4\)"),
        (("--loss.num_chunks", "7"), 8, "loss.num_chunks is 7"),
        (("--training.enable_cpu_offload",), 8, "enable_cpu_offload"),
        (("--model", "Llama-5"), 8, "Llama-5"),
    ],
)
def test_unsupported_options_are_refused_by_name(options, nproc, message):
    base = load_config(["--config", "from_scratch", *options]) if "--model" in options else config(*options)
    with pytest.raises(InputError, match=message):
        plan_run(base, nproc=nproc)


def test_a_memory_budget_is_refused():
    wrong = config("--compile.enable")
    wrong.activation_checkpoint = MemoryBudgetAC.Config()
    with pytest.raises(InputError, match="memory-budget"):
        plan_run(wrong, nproc=1)


def test_another_dataloader_is_refused():
    wrong = dataclasses.replace(config(), dataloader=BaseDataLoader.Config())
    with pytest.raises(InputError, match="dataloader"):
        plan_run(wrong, nproc=1)
