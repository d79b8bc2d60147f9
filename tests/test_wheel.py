"""The wheel in a new environment, used from an empty folder, and the editable install."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT, word_tokenizer

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def call(command: list[object], cwd: Path) -> str:
    """Run a command without the repository on the import path. Return its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that the build reads. The build writes into their folder."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("exact_titan", "train_configs", "studies"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def new_environment(folder: Path, *install: object) -> Path:
    """Make an environment with this package and with all packages of the tests' environment. Return its scripts."""
    call([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python3*/site-packages")
    # --system-site-packages would give the packages of the interpreter. The tests' environment may be a venv itself.
    (site / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call([*PIP, "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", *install], folder.parent)
    return folder / "bin"


def test_an_editable_install_finds_the_shipped_configs(sources, tmp_path):
    scripts = new_environment(tmp_path / "environment", "-e", sources)
    (tmp_path / "empty").mkdir()
    shown = call([scripts / "exact-titan", "train", "Llama-3.1-8B-16k", "--help"], tmp_path / "empty")
    assert f"{sources}/exact_titan/train_configs/Llama-3.1-8B-16k.toml (shipped with exact_titan)" in shown


@pytest.mark.slow
def test_the_wheel_in_an_empty_folder(sources, tmp_path):
    call([*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", sources], tmp_path)
    (wheel,) = (tmp_path / "dist").iterdir()
    scripts = new_environment(tmp_path / "environment", wheel)
    place = tmp_path / "empty"
    place.mkdir()

    def exact_titan(*words: object) -> str:
        return call([scripts / "exact-titan", *words], place)

    assert exact_titan("--version") == "exact_titan 0.1.0\n"
    assert str(tmp_path / "environment") in call(
        [scripts / "python", "-c", "import exact_titan; print(exact_titan.__file__)"], place
    )
    listed = exact_titan("configs")
    for name in ("from_scratch", "Llama-3.1-8B-16k", "fineweb-edu", "smollm2"):
        assert f"\n  {name} " in listed
    assert "[outputs/SmolLM2-135M-2k-{rule}]" in exact_titan("train", "SmolLM2-135M-2k", "--help")
    assert exact_titan("configs", "--copy", "book_chapters", "mine") == "mine/book_chapters.toml\n"

    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(1, 256)) for _ in range(60)) for _ in range(60)]
    (place / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    word_tokenizer(place / "tokenizer.json", 256)
    exact_titan(
        "pack",
        "documents.jsonl",
        "--tokenizer",
        "tokenizer.json",
        "--seq-len",
        64,
        "--val-fraction",
        0.1,
        "--out",
        "packed",
    )
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    trained = exact_titan(
        *["train", "--nproc", 2, "mine/book_chapters.toml", "--dataloader.dataset_path", "packed"],
        *["--training.seq_len", 64, "--loss.threshold", 16, "--training.mixed_precision_param", "float32"],
        *["--training.steps", 2, "--validator.freq", 2, "--dump_folder", "run"],
        *(f"--architecture.{name}={size}" for name, size in sizes.items()),
    )
    assert "Config: mine/book_chapters.toml\n" in trained
    assert "32-64" in exact_titan("compare", "run")
    exact_titan("export", "run", "--out", "model")
    assert (place / "model/model.safetensors").is_file()
    exact_titan("plan", "--config", "book_chapters", "--nproc", 2, "--architecture.vocab_size", 256)
    # The chapters of the default haystack are in the wheel. The tokenizer of the run is found.
    ruler = ["--ruler.tasks", "niah_single_2", "--lengths", 1024, "--examples", 1, "--out", "evaluation"]
    assert "written, 1 examples" in exact_titan("eval", "prepare", "ruler", "--model", "run", *ruler)
