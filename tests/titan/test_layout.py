"""Every layout of the ranks trains as one process does: data, context and tensor parallelism."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exact_titan.config import load_config
from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.runs.export import export
from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.target_losses import read_target_losses
from exact_titan.titan.layout import check_layout, check_sizes_of_model
from exact_titan.titan.model.context_parallel import SequenceShard
from exact_titan.titan.model.decoder import LlamaSizes, decoder_spec
from tests.checkpoints import transformers_model
from tests.support import pack_lengths
from tests.titan import test_sft
from tests.titan.layouts import (
    FOUR,
    GROUPED,
    HEADS,
    LAYOUTS,
    ONE,
    THREE,
    TWO,
    VOCABULARY,
    WINDOW,
    WINDOWS_PER_STEP,
    Layout,
    arguments,
    sizes_of,
    train,
)
from tests.titan.test_training import SIZES, losses

pytest_plugins = ["tests.text_fixtures"]

instructions = test_sft.instructions

STEPS = 6
VALIDATED = ["--validator.enable", "--validator.freq", "3", "--validator.context_gain", "20"]
EVERYTHING = [*VALIDATED, "--loss.refresh_steps", "2", "--loss.num_chunks", "2", "--ema.decay", "0.5"]
"""Refreshed weights, validation with the context gain, and the moving average."""

CHECKPOINTING = {"selective": ["activation-checkpoint:selective"], "full": ["activation-checkpoint:full"]}
FULL = {name: list(CHECKPOINTING)[k % 2] for k, name in enumerate(LAYOUTS)}
"""The activation checkpointing of the run of a layout with everything."""

RULES = {
    "random": ["cp2", "dp3", "tp4", "dp2-tp2", "replicas2-dp2"],
    "packed_position": ["dp2", "cp3", "dp2-cp2", "replicas2-cp2"],
    "normalized_exact": ["replicas2", "tp3", "dp4", "cp2-tp2", "replicas2-tp2"],
    "instructions": ["tp2", "cp4"],
}
"""The rules whose weights depend on the place of a target in its window or in the run, or on all targets of a step. And
a dataset of instructions: most inputs have no target. The layouts that train with each."""

SHORT = {
    name: (
        "full" if FULL[name] == "selective" else "selective",
        next(rule for rule, names in RULES.items() if name in names),
    )
    for name in LAYOUTS
}
"""The other activation checkpointing, and the rule, of the run of a layout with two steps."""


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> PackedDataset:
    """Training windows for six steps, and a few validation windows. Two to four ranks cannot divide them evenly."""
    rng = np.random.default_rng(1)
    lengths = (rng.lognormal(3, 1, 190) + 1).astype(int).tolist()
    found = pack_lengths(tmp_path_factory.mktemp("windows"), lengths, seq_len=WINDOW, val_fraction=0.04)
    assert len(found) >= STEPS * WINDOWS_PER_STEP
    assert len(PackedDataset(found.folder, split="val")) == 5
    return found


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory) -> Path:
    """A Qwen2 model with heads for every layout: biases on the projections, and an output layer of its own."""
    folder = tmp_path_factory.mktemp("qwen2")
    sizes = {"hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 12, "num_key_value_heads": 12}
    transformers_model("qwen2", vocab_size=VOCABULARY, num_hidden_layers=1, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


class Runs:
    """The arguments of the runs of a layout."""

    def __init__(self, windows: PackedDataset, instructions: PackedDataset, qwen2: Path, folder: Path) -> None:
        self.windows, self.instructions, self.qwen2, self.folder = windows, instructions, qwen2, folder

    def full(self, layout: Layout, sizes: dict[str, int], checkpointing: str) -> list[str]:
        options = [*EVERYTHING, *layout.options, *CHECKPOINTING[checkpointing]]
        return arguments(self.windows, self.output("full", layout, sizes), *options, sizes=sizes, steps=STEPS)

    def short(self, layout: Layout, sizes: dict[str, int], checkpointing: str, rule: str) -> list[str]:
        options = [*layout.options, *CHECKPOINTING[checkpointing]]
        dataset = self.instructions if rule == "instructions" else self.windows
        if rule == "instructions":
            options = ["--architecture.vocab_size", "0", *options]
        else:
            options = ["--loss.rule", rule, "--loss.num_chunks", "2", *options]
        return arguments(dataset, self.output(rule, layout, sizes), *options, sizes=sizes, steps=2)

    def frozen(self, layout: Layout) -> list[str]:
        options = ["--model", str(self.qwen2), "--optimizer.lr", "0", "--checkpoint.enable", *layout.options]
        options += ["--loss.num_chunks", "2"]
        return arguments(self.windows, self.output("frozen", layout, HEADS), *options, sizes=None, steps=1)

    def stock(self, layout: Layout) -> list[str]:
        """Return the arguments of torchtitan's own trainer with the overrides."""
        here, path = "exact_titan.titan.overrides", json.dumps({"dataset_path": str(self.windows.folder)})
        overrides = [f"{here}.document_attention", f"{here}.exact_loss={path}", f"{here}.packed_dataloader={path}"]
        options = ["--dump_folder", str(self.output("stock", layout, GROUPED)), "--training.seq_len", str(WINDOW)]
        options += ["--hf_assets_path", str(self.windows.folder / "tokenizer"), "--training.steps", "2"]
        degree = ["--parallelism.tensor_parallel_degree", str(layout.tensor)]
        recipe = ["--module", "tests.titan.stock_recipes", "--config", "small_llama"]
        return [*recipe, *options, *degree, "--override.imports", *overrides]

    def output(self, kind: str, layout: Layout, sizes: dict[str, int]) -> Path:
        return self.folder / layout.name / f"{kind}-{sizes['n_heads']}"


@pytest.fixture(scope="module")
def made(windows, instructions, qwen2, folder) -> Runs:
    return Runs(windows, instructions, qwen2, folder)


@pytest.fixture(scope="module")
def one_process(made, folder) -> dict[str, Any]:
    """The runs of one process, by their kind and the heads of the model."""
    runs = {f"full {sizes['n_heads']}": made.full(ONE, sizes, "selective") for sizes in map(sizes_of, LAYOUTS.values())}
    for name, (_, rule) in SHORT.items():
        sizes = sizes_of(LAYOUTS[name])
        runs[f"{rule} {sizes['n_heads']}"] = made.short(ONE, sizes, "selective", rule)
    return train(1, folder / "1-process", runs | {"stock": made.stock(ONE)})


@pytest.fixture(scope="module")
def trained(made, folder) -> dict[str, Any]:
    """The runs of all layouts, by the kind and the name of the layout. One launch for each number of processes."""
    results: dict[str, Any] = {}
    for layouts in (TWO, THREE, FOUR):
        runs = {}
        for layout in layouts:
            name, sizes = layout.name, sizes_of(layout)
            runs[f"full {name}"] = made.full(layout, sizes, FULL[name])
            runs[f"short {name}"] = made.short(layout, sizes, *SHORT[name])
            runs[f"frozen {name}"] = made.frozen(layout)
            if name == "tp2":
                runs["stock"] = made.stock(layout)
        results |= train(layouts[0].ranks, folder / f"{layouts[0].ranks}-processes", runs)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, id=f"{name} {kind}") for name, kind in FULL.items()])
def test_a_layout_trains_as_one_process(name, one_process, trained):
    """Losses, gradient norms, exposure, refreshed weights and counters of six steps with gradient accumulation."""
    found, expected = trained[f"full {name}"], one_process[f"full {sizes_of(LAYOUTS[name])['n_heads']}"]
    assert len(losses(found)) == STEPS
    for ours, theirs in zip(losses(found), losses(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    for step, metrics in expected["metrics"].items():
        same = found["metrics"][step]
        # The refreshed weights follow from the targets that all ranks have counted.
        for exactly in ("learning_rates", "tokens_seen", "weights"):
            assert same[exactly] == metrics[exactly]
        assert same["cross_entropy"] == pytest.approx(metrics["cross_entropy"], rel=2e-5)
        for label, bucket in metrics["buckets"].items():
            assert same["buckets"][label]["targets"] == bucket["targets"]
            assert same["buckets"][label] == pytest.approx(bucket, rel=2e-5)
    assert found["counts"] == expected["counts"]
    assert sum(expected["counts"]) > 0
    weights = [metrics["weights"] for metrics in expected["metrics"].values()]
    assert weights[0] == weights[1] != weights[2] != weights[4]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_logs_and_validates_as_one_process(name, made, one_process, trained):
    layout, sizes = LAYOUTS[name], sizes_of(LAYOUTS[name])
    mine, theirs = made.output("full", layout, sizes), made.output("full", ONE, sizes)
    for found, expected in zip(read_records(mine, "train"), read_records(theirs, "train"), strict=True):
        assert found["max_loss"] >= found["loss"] * 0.9999
        if layout.replicas * layout.shards == 1:
            assert found["max_loss"] == pytest.approx(expected["max_loss"], rel=2e-5)
        assert found["tokens_per_second"] * found["seconds_per_step"] == pytest.approx(WINDOWS_PER_STEP * WINDOW)
    validations = list(zip(read_records(mine, "validation"), read_records(theirs, "validation"), strict=True))
    assert [one["weights"] for one, _ in validations] == ["last", "ema"] * 2
    for found, expected in validations:
        for values in ("cross_entropy", "tail", "buckets"):
            assert found[values] == _approx(expected[values])
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
@pytest.mark.parametrize(
    ("name", "rule"),
    [pytest.param(name, rule, id=f"{name} {kind} {rule}") for name, (kind, rule) in SHORT.items()],
)
def test_a_layout_has_the_weights_of_whole_windows(name, rule, one_process, trained):
    heads = sizes_of(LAYOUTS[name])["n_heads"]
    found, expected = losses(trained[f"short {name}"]), losses(one_process[f"{rule} {heads}"])
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
        assert theirs not in losses(one_process[f"full {heads}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_export_of_a_layout_has_the_loaded_weights_bit_for_bit(name, made, trained, qwen2, tmp_path):
    loaded = load_file(qwen2 / "model.safetensors")
    (file,) = export(made.output("frozen", LAYOUTS[name], HEADS), tmp_path / "hf", dtype="float32")
    saved = load_file(file)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in loaded.items())


@pytest.mark.slow
def test_torchtitans_own_trainer_trains_alike_under_tensor_parallelism(one_process, trained):
    assert len(losses(trained["stock"])) == 2
    for ours, theirs in zip(losses(trained["stock"]), losses(one_process["stock"]), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.slow
def test_models_with_norms_of_heads_and_layers_without_rope_train_alike_under_tensor_parallelism(windows, folder):
    runs: dict[int, dict[str, list[str]]] = {1: {}, 2: {}}
    for family in ("qwen3 tied", "smollm3"):
        transformers_model(family).save_pretrained(folder / family)
        for layout in (ONE, Layout(tensor=2)):
            options = ["--model", str(folder / family), "--checkpoint.enable", "--checkpoint.load_only"]
            options += ["--loss.num_chunks", "2", *layout.options]
            output = folder / f"{family}-{layout.name}"
            runs[layout.ranks][family] = arguments(windows, output, *options, sizes=None, steps=2)
    one, two = (train(ranks, folder / f"families-{ranks}", listed) for ranks, listed in runs.items())
    for family, expected in one.items():
        for ours, theirs in zip(losses(two[family]), losses(expected), strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)


def degrees(context: int = 1, tensor: int = 1) -> list[str]:
    return [
        *["--parallelism.context_parallel_degree", str(context)],
        *["--parallelism.tensor_parallel_degree", str(tensor)],
    ]


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
