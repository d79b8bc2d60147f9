"""The studies that the package ships."""

import json
from pathlib import Path

import pytest

from exact_titan.launch import configs
from exact_titan.study.plan import plan, representatives
from exact_titan.study.results import stage_runs
from exact_titan.study.spec import read_study
from exact_titan.study_configs import run_arguments
from exact_titan.study_machine import run_argv
from tests.support import ROOT

FILES = sorted((ROOT / "studies").glob("*.toml"))


def test_the_package_ships_all_studies_of_the_repository():
    assert sorted(configs.shipped_studies()) == sorted(file.stem for file in FILES)
    assert "paper-llama-3.1-8b" in configs.shipped_studies()
    listed = configs.listing()
    for name in configs.shipped_studies():
        assert f"\n  {name} " in listed


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_shipped_study_has_checked_options(file):
    study = read_study(file)
    for one in representatives(plan(study, Path("out"), where=str(file))).values():
        argv = run_argv(one, where=str(file))
        assert argv[0] == "--config"
    recorded = {outcome.piece for outcome in study.outcomes if outcome.select == "context_gain"}
    last = [one for one in plan(study, Path("out"), where=str(file)) if one.run.stage == study.stages[-1].name]
    for one in last:
        assert recorded <= set(one.options.get("validator.context_gain", ()))
        assert (
            one.options["training.steps"] % one.options["validator.freq"] == 0 if "training.steps" in one.options else 1
        )


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_shipped_study_has_a_complete_config(file):
    """Without the data: the config of every stage and arm, and all checks that need no dataset."""
    from exact_titan.config import config_of
    from exact_titan.titan.preflight import check_options

    study = read_study(file)
    for one in representatives(plan(study, Path("out"), where=str(file))).values():
        config = check_options(config_of(run_arguments(one, where=str(file))), ranks=study.nproc)
        assert config.dataloader.dataset_path
        assert config.model or config.start_from or config.architecture
        assert config.training.steps % config.validator.freq == 0
        assert config.loss.rule == one.options.get("loss.rule", config.loss.rule)


def test_the_papers_study_has_the_papers_stages_and_rules():
    study = read_study(configs.shipped_studies()["paper-llama-3.1-8b"])
    assert [stage.options["recipe"] for stage in study.stages] == ["stage_4k", "stage_8k", "stage_16k"]
    assert {options["loss"]["rule"] for options in study.arms.values()} == {
        *("standard", "exact", "normalized_exact", "uniform", "packed_position", "random"),
    }
    assert not any(stage.shared for stage in study.stages)
    previous = {one.run.stage: one.previous for one in plan(study, Path("out"), where="x") if one.run.arm == "uniform"}
    assert str(previous["16k"]) == "8k, arm uniform, start 0, seed 0"
    assert json.loads(json.dumps(study.as_json()))["seeds"] == [0]


def test_the_small_study_has_one_start_and_nine_extensions():
    study = read_study(configs.shipped_studies()["smollm2"])
    assert [len(stage_runs(study, Path(), number)) for number in (0, 1)] == [1, 9]
    assert list(study.arms) == ["standard", "exact", "random"]
