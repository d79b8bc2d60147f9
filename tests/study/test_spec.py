"""The file of a study: every key is checked."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.study.results import read_study_file, write_study_file
from exact_titan.study.spec import Outcome, Stage, read_study
from tests.study.synthetic import make_study

STUDY = """
name = "toy"
baseline = "standard"
seeds = [0, 1]
starts = [0, 5]
primary = "far facts"

[options]
recipe = "from_scratch"

[[stages]]
name = "start"
shared = true

[[stages]]
name = "extension"
[stages.options.training]
seq_len = 512

[arms.standard.loss]
rule = "standard"

[arms."exact-0.15".loss]
rule = "exact"

[[outcomes]]
name = "far facts"
select = "facts"
min_distance = 128
max_distance = 512

[[outcomes]]
name = "gain"
select = "context_gain"
piece = 64
"""


def read(folder: Path, text: str = STUDY):
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml")


def test_a_study_is_read(tmp_path):
    study = read(tmp_path)
    assert (study.name, study.baseline, study.primary) == ("toy", "standard", "far facts")
    assert (study.seeds, study.starts, study.nproc, study.parallel) == ((0, 1), (0, 5), 1, None)
    assert study.stages == (Stage("start", True, {}), Stage("extension", False, {"training": {"seq_len": 512}}))
    assert study.arms == {"standard": {"loss": {"rule": "standard"}}, "exact-0.15": {"loss": {"rule": "exact"}}}
    assert study.outcomes == (
        Outcome("far facts", "facts", 128, 512),
        Outcome("gain", "context_gain", piece=64),
    )


def test_the_file_in_the_folder_gives_the_same_study(tmp_path):
    study = read(tmp_path)
    write_study_file(study, tmp_path)
    assert read_study_file(tmp_path) == study
    assert read_study_file(tmp_path).digest() == study.digest()


def test_only_the_number_of_runs_at_one_time_may_differ(tmp_path):
    study = read(tmp_path)
    assert replace(study, parallel=7).digest() == study.digest()
    assert replace(study, nproc=2).digest() != study.digest()
    assert replace(study, primary="gain").digest() != study.digest()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "", "seeds is missing: write seeds = [0, 1, 2]"),
        ("seeds = [0, 1]", "seeds = []", "seeds is []: it must be a list of integers, 0 or more"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "it must be a list of integers"),
        ("seeds = [0, 1]", "seeds = [3, 3]", "3 is there twice"),
        ('name = "toy"', "name = 3", "name is 3: it must be a text in quotes"),
        ('baseline = "standard"', 'baseline = "standrad"', "there is no such arm; did you mean standard?"),
        ('primary = "far facts"', 'primary = "far fact"', "there is no such outcome; did you mean far facts?"),
        ('primary = "far facts"', 'primery = "far facts"', "primary is missing"),
        ('primary = "far facts"', 'primary = "gain"\nparalel = 2', "no key paralel; did you mean parallel?"),
        ('primary = "far facts"', 'primary = "gain"\nnproc = 0', "nproc is 0: it must be an integer, 1 or more"),
        ('primary = "far facts"', 'primary = "gain"\nparallel = "all"', 'parallel is "all": it must be an integer'),
        ('name = "start"\nshared = true', 'name = "start"\nshared = "yes"', 'stages[0].shared is "yes"'),
        ('name = "start"\nshared = true', 'name = "start"\nsharde = true', "stages[0].sharde; did you mean shared?"),
        ('name = "start"', 'name = "extension"', "two stages have the name 'extension'"),
        ('name = "start"', 'name = "a/b"', "the stage 'a/b' cannot name a folder"),
        ('name = "start"', 'name = "report"', "the stage 'report' cannot name a folder"),
        ('[arms."exact-0.15".loss]', "[arms.exact-0.15.loss]", 'needs quotes, [arms."exact-0.15"]'),
        ('[arms."exact-0.15".loss]', '[arms."../x".loss]', "the arm '../x' cannot name a folder"),
        ('[arms."exact-0.15".loss]', "[other]", "fewer than two arms"),
        ("shared = true", "", "starts has 2 values: several starts need a first stage with shared = true"),
        ('name = "extension"', 'name = "extension"\nshared = true', "the last stage, extension, is shared"),
        ('select = "facts"', 'select = "fact"', "did you mean facts?"),
        ('select = "facts"', 'select = "tail"', "min_distance and max_distance belong to the selection facts"),
        ("max_distance = 512", "max_distance = 128", "max_distance is 128: it must be more than min_distance (128)"),
        ("piece = 64", "", "outcomes[1].piece belongs to the selection context_gain, which needs it"),
        ('name = "gain"', 'name = "far facts"', "two outcomes have the name 'far facts'"),
        ("seeds = [0, 1]", "seeds = [0, 1", "not a readable TOML file"),
    ],
)
def test_a_mistake_is_one_line_with_the_key(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read(tmp_path, STUDY.replace(old, new))
    assert str(raised.value).startswith(str(tmp_path / "study.toml"))
    assert "\n" not in str(raised.value)


def test_a_shared_stage_after_an_unshared_one(tmp_path):
    text = STUDY.replace("[[stages]]", '[[stages]]\nname = "own"\n[[stages]]', 1)
    with pytest.raises(InputError, match="stage start is shared, but the stage own before it is not"):
        read(tmp_path, text)


def test_a_missing_file_or_folder(tmp_path):
    with pytest.raises(InputError, match=r"none.toml: there is no such file"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"has no study.json"):
        read_study_file(tmp_path)
    (tmp_path / "study.json").write_text('{"format": 7, "study": {}}')
    with pytest.raises(InputError, match=r"study.json has the format 7, not 1"):
        read_study_file(tmp_path)
    (tmp_path / "study.json").write_text('{"format": 1, "study": {}}')
    with pytest.raises(InputError, match=r"study.json is damaged"):
        read_study_file(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arms": {"a": {}, "../../b": {}}}, "the arm '../../b' cannot name a folder"),
        ({"arms": {"a": 3, "b": {}}}, "key 'arms.a' is 3: it must be an object"),
        ({"seeds": ["0"]}, r"key 'seeds\[0\]' is '0': it must be an integer"),
        (
            {"stages": [{"name": None, "shared": False, "options": {}}]},
            r"key 'stages\[0\]\.name' is None: it must be a string",
        ),
        ({"baseline": "c"}, "there is no such arm"),
        ({"primary": []}, r"key 'primary' is \[\]: it must be a string"),
    ],
)
def test_a_study_file_of_somebody_else_is_checked(tmp_path, change, reason):
    study = make_study({"a": {}, "b": {"rule": "exact"}})
    (tmp_path / "study.json").write_text(json.dumps({"format": 1, "study": study.as_json() | change}))
    with pytest.raises(InputError, match=rf"study.json is damaged \(.*({reason})"):
        read_study_file(tmp_path)
