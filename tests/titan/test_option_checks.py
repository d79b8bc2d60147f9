import math
from dataclasses import fields, is_dataclass

import pytest

from exact_titan.config import load_config, recipes
from exact_titan.errors import InputError
from exact_titan.titan import option_checks
from exact_titan.titan.option_checks import check_machine, check_values
from exact_titan.titan.preflight import check_options

IN_FORCE = {
    "allow_changed", "attention", "activation_checkpoint.debug", "activation_checkpoint.preserve_rng_state",
    "activation_checkpoint.force_recompute_mm_shapes_by_fqns", "compile.backend", "compile.enable",
    "comm.save_traces_file_prefix", "comm.save_traces_folder", "debug.batch_invariant", "debug.detect_anomaly",
    "debug.deterministic", "debug.deterministic_warn_only", "debug.enable_structured_logging", "debug.print_config",
    "debug.save_config_file", "dump_folder", "export", "hf_assets_path", "model", "override.imports",
    "profiler.enable_memory_snapshot", "profiler.enable_profiling", "profiler.save_memory_snapshot_folder",
    "profiler.save_traces_folder", "profiler.trace_post_processor", "rope.scaling", "start_from",
    "optimizer.implementation", "lr_scheduler.decay_type", "metrics.disable_color_printing",
    "metrics.enable_tensorboard", "metrics.enable_wandb", "metrics.save_for_all_ranks", "metrics.save_tb_folder",
    "training.dtype", "training.enable_cpu_offload", "training.gc_debug", "training.mixed_precision_param",
    "training.mixed_precision_reduce", "validator.context_gain", "validator.enable",
}  # fmt: skip
"""Options without a range of numbers that have an effect. The option's own module checks the value, if it can be
wrong."""

CHECKED_ELSEWHERE = (
    *("architecture.", "loss.", "dataloader.", "validator.dataloader.", "checkpoint."),
    *("parallelism.data_parallel_", "parallelism.tensor_parallel_degree", "parallelism.context_parallel_degree"),
    *("parallelism.pipeline_parallel_degree", "parallelism.expert_parallel_degree", "parallelism.spmd_backend"),
    *("parallelism.fsdp_reshard_after_forward", "parallelism.enable_fsdp_symm_mem"),
)
"""Sections of this package, the options of torchtitan's checkpoints, and the options of preflight's own checks."""


def config(*options: str):
    return load_config(["--config", "from_scratch", *options])


def leaves(tree, prefix: str = ""):
    for field in fields(tree):
        value = getattr(tree, field.name)
        if field.name == "model_spec" or field.name.startswith("_"):
            continue
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def tables() -> set[str]:
    return {*option_checks._RANGES, *option_checks._FIXED, *option_checks._CHOICES}


def test_every_option_of_torchtitan_is_checked_refused_or_known_to_be_in_force():
    """A new option of torchtitan must be sorted into one of the tables."""
    unsorted = {
        name
        for name in leaves(config())
        if name not in tables() and name not in IN_FORCE and not name.startswith(CHECKED_ELSEWHERE)
    }
    assert unsorted == set()


def test_every_name_in_the_tables_is_an_option():
    budget = leaves(config("activation_checkpoint:memory-budget", "--compile.enable"))
    assert tables() - {*leaves(config()), *budget} == set()


def test_the_recipes_pass():
    for recipe in recipes():
        check_values(load_config(["--config", recipe]), ranks=1)


def test_a_piece_as_long_as_the_window_is_refused_before_the_run():
    check_options(config("--validator.context_gain=64,2047"), ranks=1)
    with pytest.raises(InputError, match=r"validator\.context_gain has 2048: with a window of 2048 tokens"):
        check_options(config("--validator.context_gain=64,2048"), ranks=1)


NUMBERS = [name for name in option_checks._RANGES if name != "activation_checkpoint.memory_budget"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_negative_number_is_refused_by_name(name):
    with pytest.raises(InputError) as caught:
        check_values(config(f"--{name}=-7"), ranks=1)
    assert f"{name} is -7" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.lr", "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.weight_decay"),
        *("lr_scheduler.decay_ratio", "lr_scheduler.min_lr_factor"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}: it must be"):
        check_values(config(f"--{name}={value}"), ranks=1)


@pytest.mark.parametrize(
    "option",
    [
        *("optimizer.beta1=1", "optimizer.beta2=1.0", "optimizer.eps=0", "training.max_norm=nan"),
        *("ema.decay=1", "ema.decay=nan"),
        *("training.global_batch_size=0", "lr_scheduler.total_steps=0", "lr_scheduler.min_lr_factor=1.01"),
        *("lr_scheduler.decay_ratio=2", "debug.seed=9223372036854775808", "profiler.profiler_active=0"),
        *("dataloader.seed=9223372036854775808", "profiler.profile_freq=0", "profiler.memory_snapshot_freq=0"),
    ],
)
def test_the_first_value_outside_a_range_is_refused(option):
    name = option.partition("=")[0]
    with pytest.raises(InputError, match=f"{name} is .*: it must be"):
        check_values(config(f"--{option}"), ranks=1)


@pytest.mark.parametrize(
    "option",
    [
        *("optimizer.lr=0", "optimizer.beta1=0", "optimizer.weight_decay=0", "training.max_norm=0"),
        *("ema.decay=0", "ema.decay=0.9999"),
        *("training.max_norm=inf", "training.global_batch_size=-1", "lr_scheduler.warmup_steps=0"),
        *("lr_scheduler.decay_ratio=1", "lr_scheduler.min_lr_factor=1", "debug.seed=9223372036854775807"),
        *("checkpoint.keep_latest_k=0", "checkpoint.keep_latest_k=2", "comm.trace_buf_size=0", "validator.steps=1"),
    ],
)
def test_the_last_value_inside_a_range_is_accepted(option):
    check_values(config(f"--{option}"), ranks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--dataloader.dataset", "c4"],
            "dataloader.dataset is 'c4', but this option is for torchtitan's own datasets",
        ),
        (["--dataloader.no-varlen_metadata"], "dataloader.varlen_metadata is off, but"),
        (["--validator.dataloader.no-balance"], "validator.dataloader.balance is off, but"),
        (["--validator.dataloader.infinite"], "validator.dataloader.infinite is on, but validator.steps decides"),
        (["--training.no-disable_cuda_graphs"], "training.disable_cuda_graphs is off, but a CUDA graph"),
        (["--parallelism.pipeline_parallel_schedule", "GPipe"], "pipeline_parallel_schedule is 'GPipe', but"),
        (["--parallelism.no-enable_sequence_parallel"], "parallelism.enable_sequence_parallel is off, but"),
        (["--debug.moe_force_load_balance"], "debug.moe_force_load_balance is on, but the models here have no experts"),
        (["--comm.mode", "fake_backend"], "comm.mode is 'fake_backend', but"),
        (["--compile.enable", "--compile.backend", "nowhere"], "compile.backend is 'nowhere': choose from"),
        (["--compile.components", "optimizer"], "compile.components is 'optimizer': choose from model, loss"),
        (["--checkpoint.exclude_from_loading", "x"], "checkpoint.exclude_from_loading is 'x': choose from optimizer"),
        (["--checkpoint.export_dtype", "bfloat16"], "use exact-titan export --dtype bfloat16"),
        (["--checkpoint.folder", "gs://bucket/run"], "checkpoint.folder is gs://bucket/run: checkpoints need"),
        (["--checkpoint.load_step", "3", "--checkpoint.no-enable"], "checkpoint.load_step is 3, but checkpoint.enable"),
        (
            ["--profiler.enable_profiling", "--profiler.profile_freq", "3"],
            "profiler.profile_freq is 3: it must be at least profiler_warmup plus profiler_active (4)",
        ),
    ],
)
def test_options_without_effect_and_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        check_values(config(*options), ranks=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_seed_checkpoint_needs_one_process():
    seed = config("--checkpoint.create_seed_checkpoint")
    check_values(seed, ranks=1)
    with pytest.raises(InputError, match="create_seed_checkpoint needs one process"):
        check_values(seed, ranks=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.implementation", "fused_opt_states_bf16"], "but there is no GPU: set it to fused"),
        (["--profiler.enable_memory_snapshot"], "profiler.enable_memory_snapshot is on, but there is no GPU"),
    ],
)
def test_options_that_this_machine_cannot_fulfil_are_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        check_machine(config("--dump_folder", str(tmp_path), *options))
    assert message in str(caught.value)


@pytest.mark.parametrize("cuda", [True, False])
def test_compiled_steps_without_a_compiler_are_refused(monkeypatch, tmp_path, cuda):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("exact_titan.titan.option_checks.shutil.which", lambda name: None)
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    compiled = config("--dump_folder", str(tmp_path), "--compile.enable")
    names = "gcc or clang" if cuda else "g\\+\\+"
    with pytest.raises(
        InputError, match=f"compile.enable is on, but the compiler {names} is not on this machine: .*no-"
    ):
        check_machine(compiled)
    monkeypatch.setenv("CC" if cuda else "CXX", "icx -O2")
    with pytest.raises(InputError, match="the compiler icx is not on this machine"):
        check_machine(compiled)
    monkeypatch.setattr("exact_titan.titan.option_checks.shutil.which", lambda name: f"/usr/bin/{name}")
    check_machine(compiled)
    monkeypatch.undo()
    check_machine(config("--dump_folder", str(tmp_path), "--compile.enable", "--compile.backend", "aot_eager"))
