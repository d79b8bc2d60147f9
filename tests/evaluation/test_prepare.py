"""The prompts of suites: made once, found again, and refused before anything is written."""

import json

import pytest

from exact_titan.cli import main
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import RulerOptions, SuiteOptions
from exact_titan.evaluation.prepare import prepare
from exact_titan.evaluation.prompt_sets import read_prompts
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run whose folder ``model`` has the tokenizer."""
    run = tmp_path_factory.mktemp("run")
    letters_tokenizer(run / "model")
    return run


def eval_prepare(*arguments):
    return main(["eval", "prepare", *map(str, arguments)])


def test_prompts_are_written_once_and_found_again(model, tmp_path, capsys):
    given = ("ruler", "--model", model, "--out", tmp_path, "--examples", 2, "--ruler.tasks", "fwe", "vt", "--lengths")
    assert eval_prepare(*given, 1024, 2048) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted((tmp_path / "prompts").iterdir(), key=lambda file: int(file.name.split("-")[1]))
    made = read_prompts(files[0])
    assert [line.partition(": ")[0] for line in lines[:2]] == [str(file) for file in files]
    assert lines[2:] == [f"note: {note}" for note in made.notes]
    assert made.recipe.tasks == ("vt", "fwe")
    assert (made.recipe.length, made.recipe.examples, made.recipe.template) == (1024, 2, "plain")
    assert [one.id for one in made.examples] == [f"ruler/{task}/1024/{k}" for task in ("vt", "fwe") for k in (0, 1)]
    tokens = sum(one.tokens for one in made.examples)
    assert lines[0].startswith(f"{files[0]}: written, 4 examples, {tokens:,} tokens, ")
    assert any("wonderwords" in note for note in made.notes)

    before = {file: file.stat().st_mtime_ns for file in files}
    assert eval_prepare(*given, 2048, 1024) == 0
    assert f"{files[0]}: found, 4 examples, {tokens:,} tokens, " in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "prompts").iterdir()} == before


def test_a_checkpoint_and_a_folder_name_the_same_tokenizer(model, tmp_path):
    checkpoint = model / "checkpoint" / "step-10"
    checkpoint.mkdir(parents=True, exist_ok=True)
    for source in (model, model / "model", checkpoint):
        assert (
            eval_prepare(
                *f"ruler --examples 1 --lengths 512 --ruler.tasks fwe --out {tmp_path}".split(), "--model", source
            )
            == 0
        )
    assert len(list((tmp_path / "prompts").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ruler --lengths 1024 300 --ruler.tasks fwe vt", "ruler/vt: a length of 300 tokens is too short"),
        ("ruler", "the suite ruler has prompts of a length: name --lengths"),
        ("ruler --lengths 0", "--lengths 0: a length is 1 or more tokens"),
        ("ruler --lengths 1024 --examples 0", "--examples 0: name 1 or more"),
        ("rular --lengths 1024", "there is no suite 'rular'; did you mean ruler?"),
        ("--lengths 1024", "no suite is named"),
        ("ruler --lengths 1024 --template chat", "has no chat template"),
        ("ruler --lengths 1024 --ruler.haystack absent", "absent: no such folder"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(model, tmp_path, capsys, arguments, message):
    assert eval_prepare(*arguments.split(), "--model", model, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("made", "message"), [(False, "no such folder"), (True, "has no tokenizer.json")])
def test_a_model_without_tokenizer_is_named(tmp_path, capsys, made, message):
    if made:
        (tmp_path / "empty").mkdir()
    given = ("ruler", "--lengths", 1024, "--model", tmp_path / "empty", "--out", tmp_path / "out")
    assert eval_prepare(*given) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/empty" in error
    assert message in error


def test_an_interrupted_preparation_leaves_no_file(model, tmp_path, monkeypatch):
    original, calls = Example.as_json, []

    def interrupted(self):
        calls.append(self.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Example, "as_json", interrupted)
    given = {"lengths": [512], "examples": 3, "seed": 0, "options": SuiteOptions(ruler=RulerOptions(("fwe",)))}
    with pytest.raises(KeyboardInterrupt):
        prepare(["ruler"], tokenizer=PromptTokenizer(model / "model"), out=tmp_path, **given)
    assert not list((tmp_path / "prompts").iterdir())


def test_a_chat_template_is_part_of_the_key(model, tmp_path):
    folder = tmp_path / "chat"
    letters_tokenizer(folder)
    files = []
    for template in ("<user>{{ messages[0].content }}<model>{{ '\\n' }}", "[user]{{ messages[0].content }}[model] "):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        files += prepare(
            ["ruler"],
            tokenizer=PromptTokenizer(folder, "chat"),
            lengths=[512],
            examples=1,
            seed=0,
            options=SuiteOptions(ruler=RulerOptions(("fwe",))),
            out=tmp_path,
        )
    assert len(set(files)) == 2
    (one,) = read_prompts(files[0]).examples
    assert one.prompt.startswith("<user>Read the following coded text")
    assert one.prompt.endswith(
        "coded text?<model>\nAnswer: According to the coded text above, the three most frequently appeared words are:"
    )


def test_an_answer_in_dollys_template_ends_before_dollys_last_line(model, tmp_path):
    """pack --sft teaches the line ``### End``, and a score that reads the last line must not find it."""
    ruler = RulerOptions(tasks=("fwe",))
    stops = {}
    for template in ("plain", "dolly"):
        tokenizer = PromptTokenizer(model / "model", template)
        (file,) = prepare(
            ["ruler"],
            tokenizer=tokenizer,
            lengths=[512],
            examples=1,
            seed=0,
            options=SuiteOptions(ruler=ruler),
            out=tmp_path,
        )
        (one,) = read_prompts(file).examples
        stops[template] = one.stop
    assert stops["dolly"] == (*stops["plain"], "### End")
