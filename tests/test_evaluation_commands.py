"""``exact-titan eval MODEL…`` from models on the disk to the report."""

import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from exact_titan.cli import main
from tests.evaluation.tokenizers import letters_tokenizer

LENGTHS = "--suites ruler --ruler.tasks niah_single_1 --lengths 768 --examples 3"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the random models ``a`` and ``b``. The network is blocked."""
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("an evaluation of local files used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=1024,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        letters_tokenizer(tmp_path / name)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_one_command_evaluates_two_models_and_repeats_itself(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = f"eval a b --out e {LENGTHS} --trained 768"
    assert main(command.split()) == 0
    out = capfd.readouterr().out
    assert "model        a: a" in out
    assert "report: e/report/report.html" in out
    first = files(models / "e")
    assert {name.partition("/")[0] for name in first} == {"prompts", "models", "report"}
    assert sum(name.startswith("models/b/scores/") for name in first) == 1
    assert main(command.split()) == 0
    assert files(models / "e") == first


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"a b --out e {LENGTHS}", "the training window of a is not known"),
        (f"a b --out e {LENGTHS} --window 8192 --lengths 2048", "--lengths 2048: a has 1,024 positions"),
        (f"a a --out e {LENGTHS} --trained 768", "two models have the name 'a'"),
        (f"a b --out e {LENGTHS} --trained 768 --names x", "--names has 1 names for 2 models"),
        (f"./c --out e {LENGTHS} --trained 768", "c: no such folder"),
        ("a --out e --suites rule --trained 768", "there is no suite 'rule'; did you mean ruler?"),
        ("a --out e --suites ruler --trained 768", "name --lengths, such as --lengths 4096 8192"),
        ("--out e", "no model is named"),
        ("prepar --out e", "there is no command 'eval prepar'; did you mean prepare?"),
    ],
)
def test_a_mistake_is_one_line_before_any_answer(
    models: Path, capfd: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert main(["eval", *command.split()]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1, err
    assert message in err
    assert not list((models / "e").rglob("answers"))
