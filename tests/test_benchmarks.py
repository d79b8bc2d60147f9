"""Small runs of the benchmarks. The tests do not check the speeds, because a small run has no useful speeds."""

import json

import pytest

from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.dataset import PackedDataset
from tests.evaluation.tiny_models import write_model
from tests.support import run_benchmark

pytest_plugins = ["tests.text_fixtures"]


def run(module: str, *arguments: str, small: tuple[str, ...] = ("--small",)) -> str:
    return run_benchmark(module, *small, *arguments)


def test_the_random_dataset_is_a_packed_dataset(tmp_path):
    folder = write_dataset(tmp_path / "packed", window=64, windows=9, lengths=mixed_lengths(64), vocab_size=50)
    dataset = PackedDataset(folder)
    assert len(dataset) >= 9
    assert all(set(dataset[k]["labels"].tolist()) <= set(range(50)) for k in range(9))


@pytest.mark.slow
def test_the_loader_benchmark_runs():
    assert "packed, fastest over slowest length:" in run("benchmarks.loader")


@pytest.mark.slow
def test_the_balance_benchmark_shows_better_balance(dataset):
    printed = run("benchmarks.balance", str(dataset.folder), "--epochs", "2", small=())
    rows = {tuple(line.split()[:2]): [float(cell) for cell in line.split()[2:]] for line in printed.splitlines()[3:]}
    in_order, balanced, in_order_microbatch, balanced_microbatch, *_ = rows["1", "4"]
    assert 1 < balanced < in_order
    assert 1 < balanced_microbatch < in_order_microbatch


@pytest.mark.slow
def test_the_benchmark_of_many_ranks_counts_no_more_opens_for_more_ranks():
    printed = run("benchmarks.many_ranks").splitlines()
    steps = [line.split() for line in printed[3:5]]
    assert [row[:2] for row in steps] == [["8", "32"], ["64", "256"]]
    for row in steps:
        # A shard of the rank's four windows may be open already.
        assert 0 < float(row[7]) <= 4
        assert row[8:10] == ["0", "0"]
    starts = [line.split() for line in printed[7:9]]
    shards = int(printed[0].split()[5])
    for row in starts:
        assert row[6:8] == ["1", "2"]
        assert int(row[8]) < shards / 8 + 20
    assert float(printed[-1].split()[2]) > 0


@pytest.mark.slow
def test_the_policies_benchmark_runs():
    printed = run("benchmarks.best_fit", small=("--documents", "1000"))
    assert "concat: " in printed
    assert "best_fit: " in printed


@pytest.mark.slow
def test_the_benchmark_of_special_tokens_runs(bpe_tokenizer, write_jsonl, tmp_path):
    corpus = write_jsonl(tmp_path / "documents.jsonl", ["one text", "another text"])
    printed = run("benchmarks.special_tokens", "--tokenizer", str(bpe_tokenizer), "--corpus", str(corpus), small=())
    assert printed.startswith("2 documents, ")


@pytest.mark.slow
def test_the_benchmark_of_long_documents_runs(bpe_tokenizer):
    small = ("--tokens", "300000", "--most-characters", "1200000")
    printed = run("benchmarks.long_documents", "--tokenizer", str(bpe_tokenizer), "--scripts", "spaces", small=small)
    assert "spaces " in printed
    assert " tokens  peak " in printed


@pytest.mark.slow
def test_the_plan_benchmark_runs():
    assert "peak " in run("benchmarks.plan", "--kinds", "selective", "--dtypes", "float32")


@pytest.mark.slow
def test_the_benchmark_of_warm_runs_runs():
    assert "fork: median " in run("benchmarks.warm_runs")


@pytest.mark.slow
def test_the_step_benchmark_runs(tmp_path):
    rules = ["exact", "packed_position", "random", "normalized_exact"]
    run("benchmarks.step", "--rules", *rules, "--json", str(tmp_path / "steps.json"))
    (result,) = json.loads((tmp_path / "steps.json").read_text())
    assert {row["side"] for row in result["sides"]} >= {"cross-entropy", *rules}


@pytest.mark.slow
def test_the_gpu_script_runs_on_the_cpu_and_its_checks_pass(tmp_path):
    run("benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path))
    checks = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert sum(check["passed"] is True for check in checks) >= 8
    assert {check["detail"] for check in checks if not check["passed"]} == {"needs CUDA"}


@pytest.mark.slow
def test_the_gpu_run_stops_and_resumes_on_the_cpu(tmp_path):
    assert run("benchmarks.gpu_run", "--device", "cpu", "--out", str(tmp_path)).splitlines()[-1].startswith("passed: ")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validations = [record for record in records if record["kind"] == "validation"]
    assert [(one["step"], one["weights"]) for one in validations] == [
        (step, weights) for step in (4, 8, 12) for weights in ("last", "ema")
    ]
    assert all(one["context_gain"]["32"]["targets"] for one in validations)


@pytest.mark.slow
def test_the_benchmark_of_the_evaluation_engine_runs(tmp_path):
    model = write_model(tmp_path / "model")
    printed = run("benchmarks.evaluation_engine", str(model), "--batches", "1", "2", "--repeats", "1", small=())
    assert [line.split()[:2] for line in printed.splitlines()[-4:]] == [
        [dtype, batch] for dtype in ("float32", "bfloat16") for batch in ("1", "2")
    ]
