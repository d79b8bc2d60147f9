"""A model of 32 positions continues on windows of 64 with another RoPE: runs, exports, resumes and the next stage."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.models.hf_config import read_architecture
from exact_titan.planning.report import table
from exact_titan.planning.run import plan_run
from exact_titan.runs.export import export
from exact_titan.runs.run_record import read_record
from exact_titan.titan.preflight import complete
from exact_titan.titan.start import check_positions, resolve_architecture
from tests import warm_ranks
from tests.checkpoints import transformers_model
from tests.titan.test_layout import degrees
from tests.titan.test_training import losses, record

pytestmark = pytest.mark.slow  # the tests of the models cover each kind of RoPE in less time

SHORT = {"max_position_embeddings": 32}
YARN = ["--rope.scaling", "yarn", "--rope.factor", "4"]
ROPES = {
    "theta": ["--rope.theta", "5e5"],
    "linear": ["--rope.scaling", "linear", "--rope.factor", "4", "--rope.original_positions", "16"],
    "yarn": [*YARN, "--rope.theta", "5e4", "--rope.beta_fast", "4", "--rope.attention_factor", "1.3"],
    "llama3": ["--rope.scaling", "llama3", "--rope.factor", "2.0", "--rope.high_freq_factor", "8"],
}
PARAMETERS = {
    "theta": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 32,
             "beta_fast": 4.0, "attention_factor": 1.3},
    "llama3": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32,
               "low_freq_factor": 1.0, "high_freq_factor": 8.0},
    "smollm3": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


def arguments(dataset, folder: Path, *options: str, steps: int = 1) -> list[str]:
    return [
        *["--config", "from_scratch", "--dump_folder", str(folder), "--dataloader.dataset_path", str(dataset.folder)],
        *["--training.seq_len", str(dataset.window), "--training.steps", str(steps), "--validator.no-enable"],
        *["--training.mixed_precision_param", "float32", "--training.global_batch_size", "4"],
        *["--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "1", "--optimizer.lr", "0.0", *options],
    ]


def spec(name: str, *given) -> dict:
    return {"name": name, "trainer": "exact", "argv": arguments(*given)}


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> tuple[Path, dict]:
    """Every RoPE in a run whose learning rate is 0, and the exports of the runs. The run ``yarn`` has two steps."""
    folder = tmp_path_factory.mktemp("rope")
    transformers_model("llama", **SHORT).save_pretrained(folder / "llama")
    transformers_model("smollm3", **SHORT).save_pretrained(folder / "base-smollm3")
    specs = [
        spec(name, dataset, folder / name, "--model", str(folder / "llama"), *options)
        for name, options in ROPES.items()
    ]
    specs[list(ROPES).index("yarn")]["argv"] += ["--training.steps", "2", "--checkpoint.interval", "1"]
    specs.append(spec("smollm3", dataset, folder / "smollm3", "--model", str(folder / "base-smollm3"), *YARN))
    result = record(1, folder, *specs)
    for name in PARAMETERS:
        export(folder / name, folder / f"{name}-hf", dtype="float32")
    return folder, result


@pytest.fixture(scope="module")
def stopped(trained, tmp_path_factory) -> Path:
    """The run ``yarn`` with the checkpoint of step 1 alone."""
    out = tmp_path_factory.mktemp("stopped") / "yarn"
    shutil.copytree(trained[0] / "yarn", out)
    shutil.rmtree(out / "checkpoint/step-2")
    return out


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_computes_with_the_rope_of_the_run(trained, name):
    folder, _ = trained
    family = name if name == "smollm3" else "llama"
    positions = {"max_position_embeddings": 128} if name in ("yarn", "smollm3") else {"max_position_embeddings": 64}
    expected = transformers_model(family, rope_parameters=PARAMETERS[name], **positions)
    exported = AutoModelForCausalLM.from_pretrained(folder / f"{name}-hf")
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, plain = expected(tokens).logits, transformers_model(family)(tokens).logits
        assert torch.equal(exported(tokens).logits, logits)
    assert (logits - plain)[:, 1:].abs().max() > 0.1
    assert AutoConfig.from_pretrained(folder / f"{name}-hf").max_position_embeddings == positions.popitem()[1]


def test_exports_and_resumes_train_with_the_rope_of_the_run(trained, stopped, dataset, tmp_path):
    folder, result = trained
    resume = ["--model", "Qwen2.5-0.5B", *ROPES["yarn"], "--training.steps", "2"]  # the folder of the model is gone
    again = record(
        1,
        tmp_path,
        *(
            spec(name, dataset, tmp_path / name, "--model", str(folder / f"{name}-hf"))
            for name in ("linear", "smollm3")
        ),
        spec("yarn", dataset, tmp_path / "yarn", "--model", str(folder / "yarn-hf")),
        spec("resume", dataset, stopped, *resume),
    )
    for name in ("linear", "smollm3", "yarn"):
        assert losses(again[name]) == losses(result[name])[:1]
    assert losses(again["resume"]) == losses(result["yarn"])[1:]
    assert len({losses(result[name])[0] for name in ROPES}) == len(ROPES)
    for model in (stopped / "model", folder / "yarn-hf"):
        assert read_architecture(model) == read_architecture(folder / "yarn/model")


def test_another_rope_than_the_rope_of_the_checkpoint_is_refused_or_named(trained, stopped, dataset):
    model = ["--model", str(trained[0] / "llama")]
    for other, message in {
        (
            "--rope.theta",
            "1e6",
        ): r"trained with max_positions 128, not 64; rope_theta 50000.0, not 1000000.0; rope_scaling "
        r"yarn, factor 4 from 32 positions, beta_fast 4, attention factor 1.3, not none: resume",
        (*YARN[:2], "--rope.factor", "2"): r"rope_scaling yarn, .*, not yarn, factor 2 from 32 .*_changed model$",
        (): r"the model has 32 positions",
    }.items():
        with pytest.raises(InputError, match=message):
            complete(load_config(arguments(dataset, stopped, *model, *other, steps=3)))
    allowed = ["--rope.theta", "1e6", "--dataloader.allow_changed", "model"]
    config = complete(load_config(arguments(dataset, stopped, *model, *allowed, steps=3)))
    assert any(change.startswith("model: rope_scaling yarn, factor 4") for change in config._resume.changes)


def test_the_next_stage_counts_its_factor_from_the_same_positions_and_says_its_rope(trained, dataset, tmp_path):
    folder, _ = trained
    options = ["--start_from", str(folder / "yarn"), "--rope.scaling", "yarn", "--rope.factor", "8"]
    done = warm_ranks.run(1, "exact_titan.train", *arguments(dataset, tmp_path / "next", *options), cwd=tmp_path)
    assert done.codes == [0], done.stderr
    architecture = read_architecture(tmp_path / "next/model")
    assert architecture.rope == (
        "theta 50,000, yarn, factor 8 from 32 positions, beta_fast 4, attention factor 1.3, 256 positions"
    )
    assert f"  rope         {architecture.rope}\n" in done.stdout + done.stderr
    run = read_record(tmp_path / "next")
    assert run.model["rope_scaling"]["factor"] == run.config["rope"]["factor"] == 8.0
    assert run.model["max_position_embeddings"] == 256


def test_context_and_tensor_parallel_ranks_rotate_like_one_process(trained, dataset, tmp_path):
    folder, result = trained
    options = ["--model", str(folder / "llama"), *ROPES["yarn"]]
    found = record(
        2,
        tmp_path,
        spec("cp", dataset, tmp_path / "cp", *options, *degrees(2)),
        spec("tp", dataset, tmp_path / "tp", *options, *degrees(tensor=2)),
    )
    for name in ("cp", "tp"):
        assert losses(found[name])[0] == pytest.approx(losses(result["yarn"])[0], rel=2e-5)


def refusal(dataset, folder: Path, *options: str) -> str:
    config = load_config(arguments(dataset, folder / "out", *options))
    with pytest.raises(InputError) as caught:
        check_positions(config, resolve_architecture(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_window_beyond_the_positions_names_the_options(trained, dataset, tmp_path):
    folder, _ = trained
    line = refusal(dataset, tmp_path, "--model", str(folder / "llama"))
    assert "training.seq_len is 64, but the model has 32 positions (max_position_embeddings)" in line
    assert line.endswith("a larger --rope.theta, or --rope.scaling yarn --rope.factor 2")
    line = refusal(dataset, tmp_path, "--model", str(folder / "llama"), *YARN[:2], "--rope.factor", "1.5")
    assert "the model has 48 positions" in line
    assert line.endswith("or another RoPE: --rope.scaling yarn --rope.factor 2")
    line = refusal(dataset, tmp_path, "--model", str(folder / "llama3-hf"), "--training.seq_len", "300")
    assert line.endswith("--rope.scaling llama3 --rope.factor 10")


def test_rope_that_has_no_effect_or_contradicts_the_previous_stage_is_refused(trained, dataset, tmp_path):
    folder, _ = trained
    line = refusal(dataset, tmp_path, "--rope.theta", "1e6", "--architecture.vocab_size", "256")
    assert line == "rope.theta is 1e+06, but the model is from scratch: set architecture.rope_theta"
    both = ["--model", str(folder / "llama"), "--start_from", str(folder / "yarn")]
    line = refusal(dataset, tmp_path, *both, "--rope.max_positions", "64")
    assert line.startswith(
        f"start_from is {folder / 'yarn'}: rope.max_positions is 64, but the model has a scaling (yarn"
    )
    line = refusal(dataset, tmp_path, *both)
    assert "leave model out to continue with the RoPE of start_from, or set the same --rope options" in line
    assert "(theta 10,000, no scaling, 32 positions)" in line
    assert "yarn, factor 4 from 32 positions" in line
    same = load_config(arguments(dataset, tmp_path / "out", *both, *ROPES["yarn"]))
    assert resolve_architecture(same) == read_architecture(folder / "yarn-hf")


def test_plan_knows_the_rope(trained, dataset):
    folder, _ = trained
    config = load_config(arguments(dataset, folder / "out", "--model", str(folder / "llama"), *YARN))
    text = table(plan_run(config, nproc=1), memory=None, peak_flops=1e15, mfu=0.4)
    assert "RoPE: theta 10,000, yarn, factor 4 from 32 positions, attention factor 1.139, 128 positions" in text
