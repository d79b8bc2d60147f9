"""``exact-titan plan``, also with every TOML in train_configs."""

import pytest

from exact_titan.cli import _run_options_last, main
from exact_titan.config import load_config
from tests.support import ROOT

TOMLS = sorted((ROOT / "train_configs").glob("*.toml"))
SMALL = ["--config", "from_scratch", "--architecture.vocab_size", "1000", "--training.seq_len", "256"]


QUICK = ("Llama-3.1-8B-16k", "SmolLM2-135M-2k", "book_chapters")
PLANNED_ALIKE = ("Llama-3.1-8B-8k", "Llama-3.1-8B-128k", "Qwen2.5-7B-8k", "Qwen2.5-7B-64k")
"""TOMLs whose recipe is planned with another model, and whose model is planned with other recipes."""


def most_are_slow(file):
    """Mark most TOMLs as slow. Stages differ only in window and batch, and models in size."""
    return pytest.param(file, id=file.stem, marks=[] if file.stem in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("file", [most_are_slow(file) for file in TOMLS if file.stem not in PLANNED_ALIKE])
def test_every_toml_can_be_planned(file, tmp_path, monkeypatch, capsys):
    # In this folder the folders that a TOML names do not exist.
    monkeypatch.chdir(tmp_path)
    config = load_config(["--config", str(file)])
    batch, context = config.training.global_batch_size, config.parallelism.context_parallel_degree
    nproc = 8 if batch in (-1, *range(8, 1024, 8)) or context > 1 else 2
    # Without a model name the vocabulary size comes from the dataset, and there is no dataset here.
    options = [] if config.model else ["--architecture.vocab_size", "32768"]
    assert main(["plan", "--config", str(file), "--nproc", str(nproc), "--memory", "80GiB", *options]) == 0
    assert capsys.readouterr().out.endswith("fits\n")


def test_options_of_the_run_override_the_config_at_any_position(capsys):
    assert main(["plan", "--training.steps", "7", "--nproc=2", *SMALL, "activation-checkpoint:full"]) == 0
    out = capsys.readouterr().out
    assert "7 steps" in out
    assert "full activation checkpointing" in out
    assert "one GPU has" not in out


def test_an_option_without_a_section_overrides_the_config_too(capsys):
    assert main(["plan", "--config", "stage_64k", "--nproc", "8", "--model", "Qwen2.5-72B"]) == 2
    assert "model is 'Qwen2.5-72B': there is no such folder" in capsys.readouterr().err
    assert main(["plan", *SMALL, "--nproc", "2", "--models", "Qwen2.5-7B"]) == 2
    assert "there is no option --models" in capsys.readouterr().err


def test_a_run_that_does_not_fit_exits_with_1_and_a_way_out(capsys):
    assert main(["plan", *SMALL, "--nproc", "2", "--memory", "1MiB"]) == 1
    assert "does not fit: " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "80"], "--memory is '80'"),
        (["--mfu", "40"], "--mfu is 40.0"),
        (["--peak-tflops", "0"], "--peak-tflops is 0.0"),
        (["--peak_tflops", "0"], "--peak-tflops is 0.0"),
        (["--training.seqlen", "3"], "did you mean training.seq_len?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(options, message, capsys):
    assert main(["plan", *SMALL, "--nproc", "2", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_arguments_of_other_commands_are_unchanged():
    assert _run_options_last(["pack", "a", "--seq-len", "3"]) == ["pack", "a", "--seq-len", "3"]
    assert _run_options_last([]) == []
