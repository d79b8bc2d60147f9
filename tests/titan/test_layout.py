"""Every layout of the ranks trains as one process does: data, context and tensor parallelism."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.runs.export import export
from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.titan.layout import check_layout, check_sizes_of_model
from exact_titan.titan.model.context_parallel import SequenceShard
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from tests.checkpoints import transformers_model
from tests.titan.test_training import SIZES, argv, losses, record

STEPS = 6
VALIDATED = ["--validator.enable", "--validator.freq", "3", "--validator.context_gain", "8,24"]
# No degree of parallelism divides the vocabulary: the shards of the tied embeddings are padded.
VOCABULARY = ["--architecture.vocab_size", "257"]
OPTIONS = [*VALIDATED, *VOCABULARY, "--loss.refresh_steps", "2", "--loss.num_chunks", "4", "--ema.decay", "0.5"]
KINDS = {"selective": ["activation-checkpoint:selective"], "full": ["activation-checkpoint:full"]}


def degrees(context: int = 1, tensor: int = 1) -> list[str]:
    return [
        *["--parallelism.context_parallel_degree", str(context)],
        *["--parallelism.tensor_parallel_degree", str(tensor)],
    ]


LAYOUTS: dict[int, dict[str, list[str]]] = {
    2: {
        "cp2 selective": [*degrees(2), *KINDS["selective"]],
        "tp2 full": [*degrees(tensor=2), *KINDS["full"]],
    },
    4: {
        "dp2-cp2 full": [*degrees(2), *KINDS["full"]],
        "dp2-tp2": degrees(tensor=2),
        "cp2-tp2 selective": [*degrees(2, 2), *KINDS["selective"]],
        "cp4": degrees(4),  # more ranks than key heads
    },
}
RULES = ("random", "packed_position", "normalized_exact")
"""The rules whose weights depend on the place of a target in its window or in the run, or on all targets of a step."""


def train(ranks: int, dataset, folder: Path, runs: dict[str, list[str]]) -> dict[str, Any]:
    specs = [
        {"name": name, "trainer": "exact", "argv": argv(dataset, folder / name, *options, steps=STEPS)}
        for name, options in runs.items()
    ]
    return record(ranks, folder, *specs)


def rule_runs(*options: str) -> dict[str, list[str]]:
    return {rule: ["--loss.rule", rule, "--training.steps", "2", *options] for rule in RULES}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory) -> Path:
    """A Qwen2 model: biases on the projections, and an output layer of its own."""
    folder = tmp_path_factory.mktemp("qwen2")
    transformers_model("qwen2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def one_process(dataset, folder) -> dict[str, Any]:
    return train(1, dataset, folder / "1", {"one": OPTIONS, **rule_runs()})


@pytest.fixture(scope="module")
def runs(dataset, folder) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for ranks, layouts in LAYOUTS.items():
        wanted = {name: [*OPTIONS, *options] for name, options in layouts.items()}
        if ranks == 2:
            wanted |= rule_runs(*degrees(2))
        results |= train(ranks, dataset, folder / str(ranks), wanted)
    return results


def run_folder(folder: Path, name: str) -> Path:
    return next(folder / str(ranks) / name for ranks, layouts in LAYOUTS.items() if name in layouts)


ALL = [name for layouts in LAYOUTS.values() for name in layouts]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_layout_trains_as_one_process(name, one_process, runs):
    expected = one_process["one"]
    assert len(losses(runs[name])) == STEPS
    for ours, theirs in zip(losses(runs[name]), losses(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    for step, metrics in expected["metrics"].items():
        found = runs[name]["metrics"][step]
        # The refreshed weights follow from the targets that all ranks have counted.
        for exactly in ("learning_rates", "tokens_seen", "weights"):
            assert found[exactly] == metrics[exactly]
        assert found["cross_entropy"] == pytest.approx(metrics["cross_entropy"], rel=2e-5)
        for label, bucket in metrics["buckets"].items():
            assert found["buckets"][label]["targets"] == bucket["targets"]
            assert found["buckets"][label] == pytest.approx(bucket, rel=2e-5)
    assert runs[name]["counts"] == expected["counts"]
    assert sum(expected["counts"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_layout_logs_and_validates_as_one_process(name, folder, one_process, runs):
    mine, theirs = run_folder(folder, name), folder / "1/one"
    for found, expected in zip(read_records(mine, "train"), read_records(theirs, "train"), strict=True):
        assert found["max_loss"] >= found["loss"] * 0.9999
        assert found["max_loss"] == pytest.approx(expected["max_loss"], rel=0.05)
        for ratio in ("tokens_per_second", "seconds_per_step"):
            assert found[ratio] > 0
        assert found["tokens_per_second"] * found["seconds_per_step"] == pytest.approx(4 * 64)
    validations = list(zip(read_records(mine, "validation"), read_records(theirs, "validation"), strict=True))
    assert [one["weights"] for one, _ in validations] == ["last", "ema"] * 2
    for found, expected in validations:
        for name in ("cross_entropy", "tail", "buckets"):
            assert found[name] == _approx(expected[name])
        assert found["windows"] == expected["windows"]
        for piece, gain in expected["context_gain"].items():
            assert found["context_gain"][piece]["targets"] == gain["targets"] > 0
            assert found["context_gain"][piece]["gain"] == pytest.approx(gain["gain"], abs=1e-5)
    for weights in ("last", "ema"):
        found, expected = (read_target_losses(run, STEPS, weights) for run in (mine, theirs))
        for column in ("bucket", "document", "place"):
            assert np.array_equal(getattr(found, column), getattr(expected, column))
        np.testing.assert_allclose(found.cross_entropy, expected.cross_entropy, rtol=1e-4)


def _approx(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _approx(one) for name, one in value.items()}
    return pytest.approx(value, rel=2e-5) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_divided_window_has_the_weights_of_the_whole_window(rule, one_process, runs):
    assert losses(runs[rule]) != losses(runs["cp2 selective"])[:2]
    for ours, theirs in zip(losses(runs[rule]), losses(one_process[rule]), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.slow
def test_a_run_resumes_on_another_layout(dataset, qwen2, folder):
    """An unbroken run of one process is the reference. The model has biases and no tied embeddings."""
    base = ["--model", str(qwen2), "--loss.refresh_steps", "2", "--checkpoint.enable", "--checkpoint.interval", "2"]
    base += ["--checkpoint.keep_latest_k", "0"]

    def run(ranks: int, name: str, *layout: str, end_after: int = STEPS) -> dict[str, Any]:
        arguments = argv(dataset, folder / name, *base, *layout, steps=STEPS)
        spec = {"name": "run", "trainer": "exact", "argv": _without_architecture(arguments), "end_after": end_after}
        return record(ranks, folder / f"{name}-record", spec)["run"]

    whole = run(1, "whole")
    first = run(4, "moved", *degrees(2, 2), end_after=2)
    second = run(2, "moved", *degrees(tensor=2), end_after=4)
    third = run(2, "moved", *degrees(2))
    steps = [*losses(first), *losses(second), *losses(third)]
    assert steps == [pytest.approx(one, rel=2e-5) for one in losses(whole)]
    assert third["counts"] == whole["counts"]
    assert third["windows"] == whole["windows"]
    for part in (first, second, third):
        for step, metrics in part["metrics"].items():
            assert metrics["tokens_seen"] == whole["metrics"][step]["tokens_seen"]
    for step in (2, 4, 6):
        weights = {
            name: load_file(export(folder / name, folder / f"hf-{name}-{step}", step=step, dtype="float32")[0])
            for name in ("whole", "moved")
        }
        assert weights["whole"].keys() == weights["moved"].keys()
        for name, tensor in weights["whole"].items():
            difference = (weights["moved"][name] - tensor).abs()
            # A step of AdamW has the size of the learning rate, 1e-2, also for a gradient that is only rounding.
            assert difference.max() < 1e-2
            assert difference.mean() < 1e-4


@pytest.mark.slow
def test_models_with_norms_of_heads_and_layers_without_rope_train_alike_under_tensor_parallelism(dataset, folder):
    specs: dict[str, dict[str, Any]] = {}
    for family in ("qwen3 tied", "smollm3"):
        transformers_model(family).save_pretrained(folder / family)
        for name, layout in {"1": [], "2": degrees(tensor=2)}.items():
            options = ["--model", str(folder / family), "--checkpoint.enable", "--checkpoint.load_only", *layout]
            arguments = argv(dataset, folder / f"{family}-{name}", *options, steps=3)
            specs.setdefault(name, {})[family] = _without_architecture(arguments)
    results = {}
    for ranks, runs in specs.items():
        listed = [{"name": name, "trainer": "exact", "argv": arguments} for name, arguments in runs.items()]
        results[ranks] = record(int(ranks), folder / f"families-{ranks}", *listed)
    for family, one in results["1"].items():
        for ours, theirs in zip(losses(results["2"][family]), losses(one), strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.slow
def test_the_export_of_every_layout_has_the_loaded_weights_bit_for_bit(dataset, qwen2, folder):
    base = ["--model", str(qwen2), "--optimizer.lr", "0", "--checkpoint.enable", "--checkpoint.interval", "1"]
    loaded = load_file(qwen2 / "model.safetensors")
    for ranks, layouts in {2: {"cp2": degrees(2), "tp2": degrees(tensor=2)}, 4: {"cp2-tp2": degrees(2, 2)}}.items():
        specs = []
        for name, layout in layouts.items():
            arguments = argv(dataset, folder / "frozen" / name, *base, *layout, steps=1)
            specs.append({"name": name, "trainer": "exact", "argv": _without_architecture(arguments)})
        record(ranks, folder / f"frozen-{ranks}", *specs)
        for name in layouts:
            (file,) = export(folder / "frozen" / name, folder / f"frozen-{name}", dtype="float32")
            saved = load_file(file)
            assert saved.keys() == loaded.keys()
            assert all(torch.equal(saved[key], tensor) for key, tensor in loaded.items())


def _without_architecture(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--architecture."):
            skip = not skip
            continue
        kept.append(argument)
    return kept


def test_parts_of_a_sequence_join_to_the_sequence():
    x_BL = torch.arange(24).view(2, 12)
    parts = [SequenceShard(index, 3).of(x_BL) for index in range(3)]
    assert all(part.is_contiguous() and part.shape == (2, 4) for part in parts)
    assert torch.equal(torch.cat(parts, dim=1), x_BL)
    assert SequenceShard().of(x_BL) is x_BL


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        (
            degrees(3),
            4,
            "parallelism.context_parallel_degree is 3: it must be 1 or more and divide the number of proce",
        ),
        (degrees(0), 4, "parallelism.context_parallel_degree is 0"),
        (degrees(tensor=3), 4, "parallelism.tensor_parallel_degree is 3"),
        (degrees(4, 2), 4, "context_parallel_degree 4 and tensor_parallel_degree 2: their product must be the number"),
        ([*degrees(2), "--parallelism.data_parallel_replicate_degree", "4"], 4, "context_parallel_degree 2"),
        ([*degrees(2), "--parallelism.data_parallel_shard_degree", "4"], 4, "data_parallel_shard_degree 4"),
        ([*degrees(2), "--training.seq_len", "66"], 4, "training.seq_len is 66: .* it must be divisible by 4"),
        (["--parallelism.pipeline_parallel_degree", "2"], 4, "pipeline_parallel_degree is 2: torchtitan hands no pos"),
        (["--parallelism.expert_parallel_degree", "2"], 4, "expert_parallel_degree is 2: the models here have no ex"),
        (["--parallelism.spmd_backend", "spmd_types"], 4, "parallelism.spmd_backend is spmd_types, but only"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(options, ranks, message):
    config = load_config(["--config", "from_scratch", *options])
    with pytest.raises(InputError, match=message):
        check_layout(config.parallelism, ranks=ranks, seq_len=config.training.seq_len)


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        (degrees(tensor=4), {}, r"tensor_parallel_degree is 4: it must divide the model's key heads \(2\)"),
        (degrees(tensor=8), {}, r"tensor_parallel_degree is 8: it must divide the model's query heads \(4\)"),
        (degrees(tensor=2), {"ffn_dim": 65}, r"tensor_parallel_degree is 2: it must divide the model's ffn_dim \(65\)"),
        (degrees(8), {}, r"context_parallel_degree is 8: it must divide the model's query heads \(4\): the ranks"),
        (degrees(4, 2), {}, r"context_parallel_degree is 4: it must divide the model's query heads \(2 of a tensor"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(options, sizes, message):
    config = load_config(["--config", "from_scratch", *options])
    architecture = LlamaSizes(**{**SIZES, **sizes}).architecture(seq_len=64, tokenizer_vocab=256)
    with pytest.raises(InputError, match=message):
        check_sizes_of_model(decoder_spec(architecture).model, config.parallelism)
