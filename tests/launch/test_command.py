"""The arguments and the help of ``exact-titan train``."""

import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.launch import command


def test_config_and_options_in_any_order():
    for argv in (
        ["--nproc", "2", "from_scratch", "--training.steps", "3"],
        ["from_scratch", "--training.steps", "3", "--nproc=2"],
        ["--config", "from_scratch", "--training.steps=3", "--nproc_per_node", "2"],
    ):
        launch = command.read(argv)
        assert launch.nproc == 2
        assert launch.argv[:2] == ["--config", "from_scratch"]
        assert launch.arguments.value("training.steps") == "3"
    assert command.read(["from_scratch"]).nproc is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "train: CONFIG is missing"),
        (["--nproc", "2"], "train: CONFIG is missing"),
        (["--training.steps", "3"], "--training.steps stands where CONFIG belongs"),
        (["from_scratch", "--nproc"], "--nproc is '': it must be a number"),
        (["from_scratch", "--nproc", "0"], "--nproc is 0: it must be 1 or more"),
        (["from_scratch", "--nproc", "-1"], "--nproc is -1: it must be 1 or more"),
        (["from_scratch", "--nproc", "two"], "--nproc is 'two': it must be a number"),
        (["from_scratch", "extra"], "'extra' belongs to no option"),
        (["from_scratch", "--config", "quickstart"], "'from_scratch' belongs to no option"),
        (["from_scratch", "--training.stepz", "1"], "did you mean training.steps"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, argv, message):
    assert main(["train", *argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LOCAL_RANK": "0", "RANK": "0"}, "torchrun or another launcher has started this process"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "srun has started this command 2 times"),
    ],
)
def test_no_launch_inside_a_launcher(environment, message):
    with pytest.raises(InputError, match=message):
        command.check_environment(environment)


def test_a_launch_in_a_single_task_of_a_batch_system():
    command.check_environment({"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"})


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_one_screen(capsys, flag):
    assert main(["train", flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) <= 120
    for option in ("--nproc", "--model", "--training.seq_len", "--optimizer.lr", "--loss.alpha", "--export"):
        assert any(line.split()[:1] == [option] for line in lines), option
    assert any(line.startswith("Example: exact-titan train") for line in lines)


def test_help_shows_the_values_of_the_config_and_of_the_options(capsys):
    assert main(["train", "SmolLM2-135M-2k", "--loss.alpha", "0.3", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "SmolLM2-135M-2k.toml (shipped with exact_titan)" in shown
    assert "[outputs/SmolLM2-135M-2k-{rule}]" in shown
    assert "[0.3]" in shown


def test_help_of_a_wrong_config_is_the_mistake(capsys):
    assert main(["train", "SmolLM2-135M-3k", "--help"]) == 2
    assert "did you mean SmolLM2-135M-2k" in capsys.readouterr().err


def test_help_all_shows_every_option_but_the_refused(capsys):
    assert main(["train", "--help-all"]) == 0
    shown = capsys.readouterr().out
    for option in ("--training.gc_freq", "--comm.train_timeout_seconds", "--activation_checkpoint.memory_budget"):
        assert f"{option} " in shown
    assert "--parallelism.context_parallel_degree " in shown
    assert "--parallelism.tensor_parallel_degree " in shown
    for refused in ("pipeline_parallel", "context_parallel_load", "expert_parallel", "spmd_backend"):
        assert f"--parallelism.{refused}" not in shown
