"""Mistakes in a TOML and on a command line are one line, found without torch."""

import re
import subprocess
import sys

import pytest

from exact_titan.errors import InputError
from exact_titan.launch import arguments


def refused(argv: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        arguments.read(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.stepz", "3"], "there is no key training.stepz: did you mean training.steps"),
        (["--training", "3"], "training is a section, not an option: set one of its options, such as training."),
        (["--training.steps"], "training.steps has no value: write --training.steps VALUE"),
        (["--training.steps", "--loss.alpha", "1"], "training.steps has no value"),
        (["--training.steps="], "training.steps is '': it must be an integer"),
        (["--training.steps", "1e3"], "training.steps is '1e3': it must be an integer"),
        (["--optimizer.lr", "fast"], "optimizer.lr is 'fast': it must be a number"),
        (["--validator.context_gain", "8,1e3"], "validator.context_gain is '8,1e3': it must be integers with commas"),
        (["--loss.rule", "Exact"], "loss.rule is 'Exact': choose one of"),
        (["--metrics.enable-tensorboard", "true"], "'true' belongs to no option: write --metrics.enable_tensorboard"),
        (["--metrics.enable-tensorboard=no"], "'no' belongs to no option: write --metrics.enable_tensorboard for true"),
        (["--training.no-steps"], "there is no key training.no_steps: did you mean training.steps"),
        (["-training.steps", "3"], "'-training.steps' belongs to no option: an option starts with two dashes"),
        (["3"], "'3' belongs to no option"),
        (["--"], "'--' belongs to no option"),
        (["--activation_checkpoint", "ful"], "activation_checkpoint is 'ful': choose one of"),
        (["activation_checkpoint:Full"], "activation_checkpoint is 'Full': choose one of .*; did you mean full"),
        (
            ["--activation_checkpoint", "full", "--activation_checkpoint.memory_budget", "0.5"],
            "activation_checkpoint.memory_budget is set, but activation_checkpoint is full",
        ),
    ],
)
def test_a_mistake_on_a_command_line(options, message):
    line = refused(["--config", "from_scratch", *options])
    assert line.startswith("command line: ")
    assert re.search(message, line), line


def test_the_last_setting_wins_and_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('recipe = "from_scratch"\n[training]\nsteps = 3\n[metrics]\nenable_tensorboard = false\n')
    given = arguments.read([f"--config={file}", "--training.steps", "4", "--training.steps=-5"])
    assert given.value("training.steps") == "-5"
    assert given.value("metrics.enable_tensorboard") == "false"
    assert given.value("training.seq_len") == 2048


def test_the_folder_of_the_run_has_the_rule(tmp_path):
    given = arguments.read(["--config", "from_scratch", "--dump_folder", "out/{rule}", "--loss.rule=standard"])
    assert str(given.dump_folder) == "out/standard"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the key recipe is missing"),
        (b"recipe = 3\n", "recipe is 3: give one of the recipes"),
        (b'recipe = "from_scrath"\n', "give one of the recipes .*; did you mean from_scratch"),
        (b'recipe = "from_scratch"\n\xff', "not a readable TOML file"),
        (b'recipe = "from_scratch"\n[training]\nsteps = [3]\n', r"training.steps is \[3\]: it must be an integer"),
        (
            b'recipe = "from_scratch"\n[validator]\ncontext_gain = [8, 0.5]\n',
            "context_gain is '8,0.5': it must be integers",
        ),
        (
            b'recipe = "from_scratch"\n[validator]\ncontext_gain = true\n',
            "context_gain is true: it must be a list of int",
        ),
        (b'recipe = "from_scratch"\n[training]\nsteps = true\n', "training.steps is true: it must be an integer"),
        (b'recipe = "from_scratch"\n[training]\nsteps = 2020-01-01\n', "training.steps is 2020-01-01: it must be"),
        (b'recipe = "from_scratch"\n[training]\nsteps = {}\n', r"training.steps is \{\}: it must be an integer"),
        (b'recipe = "from_scratch"\n[training.steps]\nx = 1\n', "there is no key training.steps.x"),
        (b'recipe = "from_scratch"\n[[training]]\nsteps = 1\n', "training is a section"),
        (b'recipe = "from_scratch"\n[training]\nsteps = 1\n"ste-ps" = 1\n', "there is no key training.ste_ps"),
        (b'recipe = "from_scratch"\n[training]\nseq_len = 1\n"seq-len" = 1\n', "training.seq_len is set twice"),
        (b'recipe = "from_scratch"\n[traning]\n', "there is no key traning"),
        (b'recipe = "from_scratch"\n[metrics]\nno_enable_tensorboard = true\n', "no key metrics.no_enable_tensorboard"),
        (b'recipe = "from_scratch"\n[checkpoint]\nenable = "false"\n', 'checkpoint.enable is "false": it must be true'),
        (b'recipe = "from_scratch"\ndump_folder = ["a"]\n', r'dump_folder is \["a"\]: it must be a text'),
        (b'recipe = "from_scratch"\ndump_folder = true\n', "dump_folder is true: it must be a text"),
        (b'recipe = "from_scratch"\nactivation_checkpoint = false\n', "choose one of .*; did you mean none"),
        (b'recipe = "from_scratch"\n[activation_checkpoint]\nmode = "full"\n', 'write activation_checkpoint = "full"'),
        (b'recipe = "from_scratch"\n[job]\ndump_folder = "o"\n', "write dump_folder above the first"),
    ],
)
def test_a_mistake_in_a_toml(tmp_path, content, message):
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    line = refused(["--config", str(file)])
    assert line.startswith(str(file))
    assert re.search(message, line), line


def test_a_byte_order_mark_and_an_empty_section_are_read(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b'\xef\xbb\xbfrecipe = "from_scratch"\n[training]\n')
    assert arguments.read(["--config", str(file)]).recipe == "from_scratch"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "missing.toml"], "missing.toml: there is no such file"),
        (["--config", "missing"], "--config is 'missing': there is no such file, recipe or shipped config"),
        (["--config", "none/missing.toml"], "there is no such file"),
        (["--config", "train_configs/Llama-3.1-8B-99k.toml"], "there is no such file"),
        (["--config", "elsewhere/Llama-3.1-8B-4k.toml"], "a config of this name is shipped: give Llama-3.1-8B-4k"),
        (["--config", "from-scratch"], "did you mean from_scratch"),
        (["--config", "."], "but that is a folder"),
        (["--config", ""], "give --config once"),
        (["--config", "a", "--config", "b"], "give --config once"),
    ],
)
def test_a_config_that_is_not_there(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(argv)


HEAVY = "print({name.split('.')[0] for name in sys.modules} & {'torch', 'torchtitan', 'numpy', 'tokenizers'})"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "from_scratch", "--training.stepz", "3"],
        ["train", "--help"],
        ["train", "SmolLM2-135M-2k", "--help-all"],
        ["plan", "--config", "from_scratch", "--nproc", "2", "--loss.rule", "no"],
        ["configs"],
        ["--version"],
    ],
)
def test_exact_titan_answers_without_torch(words):
    program = f"import sys\nfrom exact_titan.cli import main\nmain({words!r})\n{HEAVY}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize("words", [["--config", "from_scratch", "--loss.alhpa", "1"], ["-h"], ["--help-all"], []])
def test_exact_titan_train_answers_without_torch(words):
    program = f"import sys\nfrom exact_titan.train import main\ntry: main({words!r})\nexcept SystemExit: pass\n{HEAVY}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
