from pathlib import Path

import pytest
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC

from exact_titan.config import load_config, recipes
from exact_titan.errors import InputError
from exact_titan.models.architecture import PRESETS
from exact_titan.titan.start import check_positions, resolve_architecture
from tests.support import ROOT


def toml(tmp_path: Path, text: str) -> str:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return str(file)


def test_a_recipe_by_name_with_options():
    config = load_config(["--config", "from_scratch", "--training.steps", "3", "--loss.rule", "standard"])
    assert (config.training.steps, config.loss.rule) == (3, "standard")


def test_a_toml_changes_its_recipe_and_options_override_the_toml(tmp_path):
    file = toml(
        tmp_path,
        'recipe = "from_scratch"\nactivation_checkpoint = "full"\n'
        "[training]\nsteps = 3\nseq_len = 128\n[checkpoint]\nenable = false\n[loss]\nalpha = 0.25\n"
        '[dataloader]\ndataset_path = ""\n[override]\nimports = ["a.b", "c.d={\\"x\\": 1}"]\n',
    )
    config = load_config([f"--config={file}", "--training.steps", "5"])
    assert (config.training.steps, config.training.seq_len, config.loss.alpha) == (5, 128, 0.25)
    assert config.checkpoint.enable is False
    assert isinstance(config.activation_checkpoint, FullAC.Config)
    assert config.override.imports == ["a.b", ("c.d", {"x": 1})]


@pytest.mark.parametrize("policy", ["--activation_checkpoint=full", "activation_checkpoint:full"])
def test_an_option_with_several_values_does_not_take_the_policy(policy):
    config = load_config(["--config", "from_scratch", policy, "--override.imports", "a.b", "c.d"])
    assert config.override.imports == ["a.b", "c.d"]
    assert isinstance(config.activation_checkpoint, FullAC.Config)


@pytest.mark.parametrize("section", ["checkpoint", "dataloader", "compile"])
def test_an_empty_list_in_a_toml_is_an_empty_list(tmp_path, section):
    key = {"checkpoint": "exclude_from_loading", "dataloader": "allow_changed", "compile": "components"}[section]
    file = toml(tmp_path, f'recipe = "from_scratch"\n[{section}]\n{key} = []\n')
    assert getattr(getattr(load_config(["--config", file]), section), key) == []


def test_every_kind_of_value_in_a_toml(tmp_path):
    file = toml(
        tmp_path,
        'recipe = "from_scratch"\ndump_folder = "--model"\nexport = ""\nactivation_checkpoint = "memory-budget"\n'
        '"activation_checkpoint.memory_budget" = 0.25\n'
        'training."seq-len" = 1_024\noptimizer.eps = 1e-10\noptimizer.lr = 1\ndataloader.seed = -3\n'
        'loss.threshold = "None"\ncheckpoint.enable = false\ncompile = {enable = true, components = ["model"]}\n',
    )
    config = load_config(["--config", file])
    assert (config.dump_folder, config.export, config.loss.threshold) == ("--model", "", None)
    assert (config.training.seq_len, config.optimizer.eps, config.optimizer.lr) == (1024, 1e-10, 1.0)
    assert (config.dataloader.seed, config.checkpoint.enable, config.compile.components) == (-3, False, ["model"])
    assert isinstance(config.activation_checkpoint, MemoryBudgetAC.Config)
    assert config.activation_checkpoint.memory_budget == 0.25


def test_a_list_of_integers_in_a_toml_and_on_the_command_line(tmp_path):
    file = toml(tmp_path, 'recipe = "from_scratch"\n[validator]\ncontext_gain = [1_024, 4096]\n')
    assert load_config(["--config", file]).validator.context_gain == [1024, 4096]
    for text, expected in (("512", [512]), ("512,1024", [512, 1024]), ("", [])):
        assert load_config(["--config", file, "--validator.context_gain", text]).validator.context_gain == expected


def test_several_datasets_are_a_list_in_a_toml_and_one_argument_on_the_command_line(tmp_path):
    file = toml(tmp_path, 'recipe = "from_scratch"\n[dataloader]\ndataset_path = ["packed/web=3", "packed/math=1"]\n')
    assert load_config(["--config", file]).dataloader.dataset_path == "packed/web=3,packed/math=1"
    options = ["--config", file, "--dataloader.dataset_path", "a=1,b=2"]
    assert load_config(options).dataloader.dataset_path == "a=1,b=2"


def test_a_subcommand_may_have_any_position(tmp_path):
    assert isinstance(load_config(["--config", "from_scratch"]).activation_checkpoint, SelectiveAC.Config)
    config = load_config(["--config", "from_scratch", "activation_checkpoint:none", "--training.steps", "3"])
    assert config.activation_checkpoint is None
    assert config.training.steps == 3


@pytest.mark.parametrize("file", sorted((ROOT / "train_configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_config_is_read(file):
    config = load_config(["--config", str(file)])
    assert config.dataloader.dataset_path
    if config.model in PRESETS:
        check_positions(config, resolve_architecture(config))


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_makes_a_config(name):
    assert load_config(["--config", name]).training.steps > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nsteps = 3\n", "the key recipe is missing"),
        ('recipe = "from_scrath"\n', 'recipe is "from_scrath": give one of the recipes from_scratch'),
        (
            'recipe = "from_scratch"\n[training]\nstep = 3\n',
            "there is no key training.step: did you mean training.steps",
        ),
        (
            'recipe = "from_scratch"\n[traning]\nsteps = 3\n',
            "there is no key traning.steps: did you mean training.steps",
        ),
        ('recipe = "from_scratch"\n[training]\nsteps = "many"\n', "training.steps is 'many': it must be an integer"),
        ('recipe = "from_scratch"\n[loss]\nrule = "best"\n', "loss.rule is 'best': choose one of standard, "),
        ('recipe = "from_scratch"\n[metrics]\nenable_tensorbord = true\n', "did you mean metrics.enable_tensorboard"),
        ('recipe = "from_scratch"\n[checkpoint]\nkeep_latest_k = 1\n', "at least 2 checkpoint replicas"),
        ('recipe = "from_scratch"\nactivation_checkpoint = "half"\n', "activation_checkpoint"),
        ("recipe = \n", "not a readable TOML file"),
    ],
)
def test_a_mistake_in_a_toml_is_one_line_that_names_the_file_and_the_key(tmp_path, text, message):
    file = toml(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_config(["--config", file])
    line = str(caught.value)
    assert line.startswith(file)
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --config once"),
        (["--config"], "give --config once"),
        (["--config", "a", "--config", "b"], "give --config once"),
        (["--config", "nothing"], "--config is 'nothing'"),
        (["--config", "missing.toml"], "missing.toml: there is no such file"),
        (["--config", "from_scratch", "--training.stepz", "3"], "command line: there is no key training.stepz"),
        (["--config", "from_scratch", "--metrics.enable-tensorboard", "true"], "'true' belongs to no option"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(argv)
    assert "\n" not in str(caught.value)
