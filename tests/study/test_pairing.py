"""Arms that are not paired are refused, from their completed configs and from the run.json of their runs."""

import dataclasses
import re
from pathlib import Path

import pytest

from exact_titan import study_configs
from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord, read_record
from exact_titan.study import pairing, proof
from exact_titan.study.plan import plan, representatives
from exact_titan.study.spec import Study, read_study
from tests.study import toy
from tests.support import pack_lengths, pack_renamed_copy


def records(study: Study, *arms: str) -> dict[tuple[str, str], RunRecord]:
    """Return the records of the arms of a one-stage study. The configs of the arms are completed here."""
    chosen = representatives(plan(study, Path("none/out"), where="study.toml"))
    wanted = [one for (_, arm), one in chosen.items() if arm in arms]
    completed = study_configs.complete_records(wanted, nproc=1, where="study.toml")
    return {(one.run.stage, one.run.arm): record for one, record in zip(wanted, completed, strict=True)}


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory) -> dict[tuple[str, str], RunRecord]:
    file = toy.write(tmp_path_factory.mktemp("baseline"), dataset.folder, text=toy.ONE_STAGE)
    return records(read_study(file), "standard")


def refusal(folder: Path, dataset: Path, baseline: dict, options: str) -> str:
    """Return the message for an arm with these options."""
    text = toy.ONE_STAGE.replace('[arms.exact.loss]\nrule = "exact"\nalpha = 0.5\n', options)
    study = read_study(toy.write(folder, dataset, text=text))
    with pytest.raises(InputError) as raised:
        pairing.check_arms(baseline | records(study, "exact"), "standard", where="study.toml")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("study.toml: the arm exact is not paired with standard in the stage only: ")
    return str(raised.value)


CASES = [
    ("[arms.exact.training]\nglobal_batch_size = 8", "training.global_batch_size changes the batch: it is 8, but 4"),
    ("[arms.exact.optimizer]\nlr = 2e-2", "optimizer.lr changes the optimizer: it is 0.02, but 0.01 in the baseline"),
    ("[arms.exact.optimizer]\nbeta2 = 0.9", "optimizer.beta2 changes the optimizer"),
    ("[arms.exact.lr_scheduler]\nwarmup_steps = 3", "lr_scheduler.warmup_steps changes the learning rate schedule"),
    ("[arms.exact.training]\nsteps = 6", "training.steps changes the number of steps: it is 6, but 4"),
    ("[arms.exact.training]\nlocal_batch_size = 2", "training.local_batch_size changes the batch"),
    ("[arms.exact.training]\nmax_norm = 2", "training.max_norm changes the training"),
    ("[arms.exact.dataloader]\ninfinite = false", "dataloader.infinite changes the order of the data"),
    ("[arms.exact.dataloader]\nsplit = 'val'", "dataloader.split changes the data"),
    ("[arms.exact.architecture]\nrope_theta = 1e4", "architecture.rope_theta changes the start weights"),
    ("[arms.exact.validator]\nfreq = 4", "validator.freq changes the validation"),
    ("[arms.exact.validator]\nsteps = 2", "validator.dataloader.infinite changes the validation"),
]
SLOW = {option for option, _ in CASES[4:]}


@pytest.mark.parametrize(
    ("options", "message"),
    [pytest.param(*case, marks=pytest.mark.slow if case[0] in SLOW else ()) for case in CASES],
)
def test_an_arm_that_is_not_paired(dataset, tmp_path, baseline, options, message):
    assert message in refusal(tmp_path, dataset.folder, baseline, options)


def test_an_arm_with_other_data(dataset, tmp_path, baseline):
    other = pack_lengths(tmp_path / "other", [50] * 40, seq_len=64, val_fraction=0.1)
    options = f"[arms.exact.dataloader]\ndataset_path = '{other.folder}'"
    message = refusal(tmp_path, dataset.folder, baseline, options)
    assert f"dataloader.dataset_path changes the data: it is {other.folder} with fingerprint" in message


@pytest.mark.slow
def test_an_arm_with_another_window(dataset, tmp_path, baseline):
    other = pack_lengths(tmp_path / "other", [50] * 40, seq_len=32, val_fraction=0.1)
    options = f"[arms.exact]\ntraining.seq_len = 32\ndataloader.dataset_path = '{other.folder}'"
    assert " changes the " in refusal(tmp_path, dataset.folder, baseline, options)


@pytest.mark.slow
def test_an_arm_with_other_validation_windows(dataset, tmp_path, baseline):
    other = pack_lengths(tmp_path / "other", [50] * 40, seq_len=64, val_fraction=0.1)
    options = f"[arms.exact.validator]\ndataloader.dataset_path = '{other.folder}'"
    assert "changes the validation: its fingerprint is" in refusal(tmp_path, dataset.folder, baseline, options)


def test_a_renamed_copy_of_the_data_is_paired(dataset, tmp_path, baseline):
    copy = pack_renamed_copy(dataset, tmp_path / "copy").folder
    options = f"[arms.exact]\nloss.rule = 'exact'\ndataloader.dataset_path = '{copy}'\n"
    text = toy.ONE_STAGE.replace('[arms.exact.loss]\nrule = "exact"\nalpha = 0.5\n', options)
    study = read_study(toy.write(tmp_path, dataset.folder, text=text))
    pairing.check_arms(baseline | records(study, "exact"), "standard", where="study.toml")


def test_arms_with_other_start_weights(baseline):
    (key,) = baseline
    one = baseline[key]
    other = dataclasses.replace(one, weights={"kind": "run", "path": "other/step-4", "step": 4, "digest": "ab"})
    with pytest.raises(InputError, match=r"the arm b is not paired .* start weights: they are other/step-4, but None"):
        pairing.check_first_weights({key: one, ("only", "b"): other}, "standard", "only", where="study.toml")
    other = dataclasses.replace(one, model={**one.model, "rms_norm_eps": 1})
    assert list(pairing.faults(one, other)) == [
        "model changes the start weights: the architecture is not the architecture of the baseline"
    ]


def test_arms_with_another_version_of_the_order(baseline):
    """Two versions have the same order of a large dataset. Records of version 1 have no version."""
    (one,) = baseline.values()
    old = {name: value for name, value in one.data.items() if name != "order_version"}
    assert list(pairing.faults(one, dataclasses.replace(one, data=old))) == []
    old["datasets"] = [{**old["datasets"][0], "windows": 64}]
    (fault,) = pairing.faults(one, dataclasses.replace(one, data=old))
    assert fault.startswith("the order of the windows has version 1, but 2 in the baseline")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dataloader.seed = 5", "the arm exact sets dataloader.seed: leave it out, because seeds of the study"),
        ("debug.seed = 5", "the arm exact sets debug.seed: leave it out, because starts of the study"),
        ("start_from = 'outputs/other'", "the arm exact sets start_from: leave it out"),
        ("dump_folder = 'outputs/other'", "the arm exact sets dump_folder"),
        ("loss.rule = 'standard'", "the arms standard and exact have the same options"),
    ],
)
def test_options_that_the_study_sets(tmp_path, options, message):
    text = toy.ONE_STAGE.replace('[arms.exact.loss]\nrule = "exact"\nalpha = 0.5\n', f"[arms.exact]\n{options}\n")
    study = read_study(toy.write(tmp_path, Path("packed"), text=text))
    with pytest.raises(InputError, match=re.escape(message)):
        plan(study, tmp_path / "out", where="study.toml")


def test_arms_that_differ_only_in_their_text(dataset, tmp_path, baseline):
    """The default is written out."""
    text = toy.ONE_STAGE.replace('rule = "exact"\nalpha = 0.5\n', 'rule = "standard"\nalpha = 0.15\n')
    study = read_study(toy.write(tmp_path, dataset.folder, text=text))
    with pytest.raises(InputError, match="the arms standard and exact train with the same options"):
        pairing.check_arms(baseline | records(study, "exact"), "standard", where="study.toml")


def test_a_missing_start_and_a_missing_dataset(dataset, tmp_path):
    study = read_study(
        toy.write(tmp_path, dataset.folder, ("[options]", "[options]\nstart_from = 'none'"), text=toy.ONE_STAGE)
    )
    with pytest.raises(InputError, match=r"study.toml, stage only, arm standard: none: no such folder"):
        records(study, "standard")
    study = read_study(toy.write(tmp_path, Path("none"), text=toy.ONE_STAGE))
    with pytest.raises(InputError, match=r"stage only, arm standard: none: no such folder"):
        records(study, "standard")


def test_a_later_stage_that_its_start_does_not_fit(dataset, tmp_path):
    """The checks of a later stage run before its start is trained."""
    long = pack_lengths(tmp_path / "long", [100] * 40, seq_len=128, val_fraction=0.1)
    extended = 'name = "extension"\n[stages.options]\ntraining.seq_len = 128\n'
    extended += f"dataloader.dataset_path = '{long.folder}'"
    change = ('name = "extension"', extended)
    study = read_study(toy.write(tmp_path, dataset.folder, change))
    chosen = list(representatives(plan(study, tmp_path / "out", where="study.toml")).values())
    completed = study_configs.complete_records(chosen, nproc=1, where="study.toml")
    assert [record.data["window"] for record in completed] == [64, 128, 128]
    assert {record.model["max_position_embeddings"] for record in completed} == {128}
    study = read_study(toy.write(tmp_path, dataset.folder, change, ("max_positions = 128", "")))
    chosen = list(representatives(plan(study, tmp_path / "out", where="study.toml")).values())[:2]
    with pytest.raises(
        InputError, match=r"stage extension, arm standard: training.seq_len is 128, but the model has 64"
    ):
        study_configs.complete_records(chosen, nproc=1, where="study.toml")
    # The later stage continues the model of its start with another RoPE.
    rope = ("training.seq_len = 128\n", 'training.seq_len = 128\nrope.scaling = "yarn"\nrope.factor = 2.0\n')
    study = read_study(toy.write(tmp_path, dataset.folder, change, rope, ("max_positions = 128", "")))
    chosen = list(representatives(plan(study, tmp_path / "out", where="study.toml")).values())[:2]
    start, extension = study_configs.complete_records(chosen, nproc=1, where="study.toml")
    assert (start.model["max_position_embeddings"], start.model["rope_scaling"]) == (64, None)
    assert extension.model["max_position_embeddings"] == 128
    assert extension.model["rope_scaling"]["original_max_position_embeddings"] == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("freq = 2", "freq = 3", "validator.freq is 3, and the last of the 4 steps has no validation"),
        ("freq = 2", "enable = false", "validator.enable is off"),
        ("interval = 2", "enable = false", "checkpoint.enable is off"),
        ("alpha = 0.5", 'alpha = "high"', "arm exact: loss.alpha is 'high': it must be a number"),
        ("alpha = 0.5", "alhpa = 0.5", "arm exact: there is no key loss.alhpa: did you mean loss.alpha?"),
        ("alpha = 0.5", "alpha = nan", "arm exact: loss.alpha is nan"),
    ],
)
def test_a_config_that_cannot_run(dataset, tmp_path, old, new, message):
    study = read_study(toy.write(tmp_path, dataset.folder, (old, new), text=toy.ONE_STAGE))
    with pytest.raises(InputError, match=re.escape(message)):
        records(study, "exact")


def test_the_proof_names_faults_and_other_versions(baseline, tmp_path):
    """The run.json of two runs of one pair, written by hand."""
    study = read_study(toy.write(tmp_path, Path("packed"), ("seeds = [0, 1]", "seeds = [0]"), text=toy.ONE_STAGE))
    (record,) = baseline.values()
    runs = [one.run for one in plan(study, tmp_path / "out", where="study.toml")]
    newer = dataclasses.replace(record.starts[0], version="9.9", ranks=2)
    other = dataclasses.replace(
        record,
        config={**record.config, "optimizer": {**record.config["optimizer"], "lr": 5.0}},
        weights={**record.weights, "digest": "ab"},
        starts=[*record.starts, newer],
    )
    for run, one in zip(runs, (record, other), strict=True):
        run.folder.mkdir(parents=True)
        one.write(run.folder)
        (run.folder / "exit_code").write_text("0\n")
        assert read_record(run.folder) == one
    found = proof.prove(study, tmp_path / "out")
    assert found["faults"] == [
        "only, arm exact, start 0, seed 0: optimizer.lr changes the optimizer: it is 5.0, but 0.01 in the baseline",
        "only, arm exact, start 0, seed 0: the start weights are not the start weights of only, arm standard, start 0, "
        "seed 0",
        "only, arm exact, start 0, seed 0: 2 ranks, but 1 in the baseline",
    ]
    assert [note.partition(" ")[0] for note in found["notes"]] == ["exact_titan", "ranks"]
    assert f"9.9 ({runs[1].folder})" in found["notes"][0]
    lines = list(proof.proof_lines(found))
    assert lines[0] == "not paired: 2 runs finished"
    assert lines[-1].startswith("  FAULT: ")
