"""No code of a crafted model or tokenizer folder runs. tests/runs/test_checkpoint_reader.py has the checkpoints."""

import json
import pickle
from pathlib import Path

import pytest

from exact_titan.documents.templates import ChatTemplate
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.models import open_model
from exact_titan.models.hf_config import read_architecture
from exact_titan.models.hf_weights import check_weights
from tests.checkpoints import Evil
from tests.evaluation.tiny_models import write_model

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ raise_exception.__globals__['jinja2'].loaders.FileSystemLoader('/').get_source(1, 'etc/hostname') }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A model with its tokenizer, and with code that creates ``ran`` when it is imported."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "conftest.py", "__init__.py"):
        (folder / name).write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil:\n    model_type = 'evil'\n"
        )
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


def ran(folder: Path) -> bool:
    return (folder.parent / "ran").exists()


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_no_code_of_a_model_folder_runs(folder, model_type, monkeypatch):
    def ask(*_: object) -> str:
        raise AssertionError("no question at the terminal")

    monkeypatch.setattr("builtins.input", ask)
    maps = {name: f"modeling_evil.{name}" for name in ("AutoModelForCausalLM", "AutoModel")}
    change(folder / "config.json", auto_map={**maps, "AutoConfig": "configuration_evil.Evil"}, model_type=model_type)
    with pytest.raises(InputError, match="auto_map names code in the folder"):
        read_architecture(folder)
    if model_type == "evil":
        with pytest.raises(InputError, match=r"transformers cannot read config\.json"):
            make_engine(folder, EngineOptions())
    else:
        make_engine(folder, EngineOptions()).measure()
    assert not ran(folder)


def test_pickled_weights_are_not_read(folder):
    architecture = read_architecture(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder.parent / "ran")))
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not read: pickles can run code"):
        check_weights(folder, architecture)
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not read, because a pickle can run code"):
        open_model(folder, out=folder.parent / "evaluation")
    with pytest.raises(InputError, match="transformers cannot load the model"):
        make_engine(folder, EngineOptions()).measure()
    assert not ran(folder)


def test_no_code_of_a_tokenizer_folder_runs(folder, tmp_path):
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]},
        tokenizer_class="Evil",
    )
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = DocumentTokenizer(folder, next(iter(vocabulary)))
    tokenizer.encode(["w1 w2"])
    tokenizer.save(tmp_path / "saved")
    assert not [file for file in (tmp_path / "saved").iterdir() if file.suffix == ".py"]
    assert not ran(folder)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_does_not_leave_its_sandbox(folder, template, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match="chat template of"):
        ChatTemplate.of(folder).prompt([{"role": "user", "content": "x"}])
    assert not ran(folder)
