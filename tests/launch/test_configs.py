"""Configs and corpora by their bare names."""

from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.launch import configs
from tests.support import ROOT


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_package_ships_all_configs_of_the_repository():
    files = sorted((ROOT / "train_configs").rglob("*.toml"))
    assert sorted([*configs.shipped(), *configs.shipped_corpora()]) == sorted(file.stem for file in files)


@pytest.mark.parametrize("name", ["Llama-3.1-8B-16k", "Llama-3.1-8B-16k.toml"])
def test_a_shipped_config_is_found_by_its_name(name):
    found = configs.find(name, where="--config")
    assert found.is_shipped
    assert found.file is not None
    assert found.file.name == "Llama-3.1-8B-16k.toml"
    assert str(found).endswith("Llama-3.1-8B-16k.toml (shipped with exact_titan)")


def test_a_local_file_wins_over_a_shipped_config():
    Path("Llama-3.1-8B-16k.toml").write_text('recipe = "stage_4k"\n')
    for name in ("Llama-3.1-8B-16k", "Llama-3.1-8B-16k.toml"):
        found = configs.find(name, where="--config")
        assert (found.file, found.is_shipped) == (Path("Llama-3.1-8B-16k.toml"), False)
        assert str(found) == "Llama-3.1-8B-16k.toml"


def test_a_folder_does_not_hide_a_shipped_config_or_a_recipe():
    for name in ("SmolLM2-135M-2k", "from_scratch"):
        Path(name).mkdir()
    assert configs.find("SmolLM2-135M-2k", where="--config").is_shipped
    assert configs.find("from_scratch", where="--config").file is None


def test_local_corpora_win_over_shipped_corpora():
    shipped = str(configs.shipped_corpora()["fineweb-edu"])
    assert configs.with_shipped_corpora(["fineweb-edu", "books.jsonl"]) == [shipped, "books.jsonl"]
    Path("fineweb-edu.toml").touch()
    assert configs.with_shipped_corpora(["fineweb-edu"]) == ["fineweb-edu.toml"]
    Path("fineweb-edu").mkdir()
    assert configs.with_shipped_corpora(["fineweb-edu"]) == ["fineweb-edu"]


def test_the_listing_has_one_line_for_each_name():
    lines = configs.listing().splitlines()
    for name in ("from_scratch", *configs.shipped(), *configs.shipped_corpora()):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 3
    assert max(map(len, lines)) <= 160


def test_a_copy_never_overwrites():
    copied = configs.copy("Llama-3.1-8B-16k", Path("new/mine"))
    assert copied.read_bytes() == configs.shipped()["Llama-3.1-8B-16k"].read_bytes()
    copied.write_text("mine")
    with pytest.raises(InputError, match="exists: name another folder"):
        configs.copy("Llama-3.1-8B-16k.toml", Path("new/mine"))
    assert copied.read_text() == "mine"
    assert configs.copy("fineweb-edu", Path()).name == "fineweb-edu.toml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Llama-3.1-8B-61k", "did you mean Llama-3.1-8B-"),
        ("from_scratch", "from_scratch is a recipe"),
        ("x", "configs` lists"),
    ],
)
def test_a_copy_of_an_unknown_name(name, message):
    with pytest.raises(InputError, match=message):
        configs.copy(name, Path())
    assert not list(Path().iterdir())


def test_a_copy_into_a_file_is_one_line():
    Path("file").touch()
    with pytest.raises(InputError, match=r"fineweb-edu.toml cannot be written"):
        configs.copy("fineweb-edu", Path("file"))
