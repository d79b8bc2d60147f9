"""The same content in the same order is the same dataset: names and places do not change the fingerprint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from exact_titan.dataset import Manifest
from exact_titan.packing import append, pack

pytest_plugins = ["tests.text_fixtures"]

TEXTS = [" ".join(map(str, range(first, first + length))) for first, length in ((1, 9), (40, 3), (60, 17), (90, 30))]


@pytest.fixture
def corpus(tmp_path: Path, write_jsonl: Callable[[Path, list[str]], Path]) -> Path:
    """A folder of two files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [*TEXTS[:2], ""])
    write_jsonl(folder / "b.jsonl", TEXTS[2:])
    return folder


@pytest.fixture
def packed(tmp_path: Path, corpus: Path, word_tokenizer: Path) -> Manifest:
    return pack([corpus], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "packed", val_fraction=0.3)


def again(tmp_path: Path, sources: list[Path], tokenizer: Path) -> Manifest:
    return pack(sources, tokenizer=tokenizer, seq_len=8, out=tmp_path / "again", val_fraction=0.3)


def renamed(corpus: Path) -> Path:
    """Return a copy of the corpus in another place, with another name of the folder and of every file."""
    copy = corpus.parent / "elsewhere/copy of the corpus"
    (copy / "year=1900").mkdir(parents=True)
    shutil.copy(corpus / "a.jsonl", copy / "year=1900/part-0.ndjson")
    shutil.copy(corpus / "b.jsonl", copy / "year=1900/part-1.ndjson")
    (copy / "README.md").write_text("not a document")
    return copy


def test_a_renamed_copy_is_the_same_dataset(tmp_path: Path, corpus: Path, word_tokenizer: Path, packed: Manifest):
    tokenizer = shutil.copytree(word_tokenizer, tmp_path / "other tokenizer")
    copy = again(tmp_path, [renamed(corpus)], tokenizer)
    assert copy.fingerprint == packed.fingerprint
    # The manifest still says the names.
    assert (copy.sources[0].name, copy.tokenizer.name) == ("copy of the corpus", "other tokenizer")
    assert Manifest.read(tmp_path / "again") == copy
    for file in (tmp_path / "packed").glob("*[!n]"):  # the shards and the lengths
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_other_content_is_another_dataset(tmp_path: Path, corpus: Path, word_tokenizer: Path, packed: Manifest):
    found = {packed.fingerprint}
    swapped = [corpus / "b.jsonl", corpus / "a.jsonl"]
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text((word_tokenizer / "tokenizer.json").read_text() + "\n")
    longer = shutil.copytree(corpus, tmp_path / "longer")
    with (longer / "a.jsonl").open("a") as out:
        out.write(json.dumps({"text": ""}) + "\n")
    for sources, one in ((swapped, word_tokenizer), ([corpus], tokenizer), ([longer], word_tokenizer)):
        found.add(again(tmp_path, sources, one).fingerprint)
        shutil.rmtree(tmp_path / "again")
    assert len(found) == 4


def test_a_folder_of_one_file_is_the_file(tmp_path: Path, corpus: Path, word_tokenizer: Path):
    (corpus / "b.jsonl").unlink()
    one = again(tmp_path, [corpus], word_tokenizer)
    shutil.rmtree(tmp_path / "again")
    assert again(tmp_path, [corpus / "a.jsonl"], word_tokenizer).fingerprint == one.fingerprint


def test_names_in_a_corpus_toml_do_not_count(tmp_path: Path, corpus: Path, word_tokenizer: Path):
    found = set()
    for number, folder in enumerate((corpus, renamed(corpus))):
        (tmp_path / f"{number}.toml").write_text(
            f'[[source]]\npath = "{folder}"\nname = "source {number}"\nmax_tokens = 30\n'
        )
        manifest = again(tmp_path, [tmp_path / f"{number}.toml"], word_tokenizer)
        assert manifest.sources[0].name == f"source {number}"
        found.add(manifest.fingerprint)
        shutil.rmtree(tmp_path / "again")
    assert len(found) == 1


def test_names_of_instructions_do_not_count(tmp_path: Path, word_tokenizer: Path):
    """The manifest names samples that are longer than the window, with the names of their files."""
    found, names = set(), set()
    for name in ("rows.jsonl", "copy.jsonl"):
        rows = [{"instruction": "1 2", "context": "", "response": " ".join(["7"] * n)} for n in (3, 200)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"{name}-packed"
        manifest = pack([tmp_path / name], tokenizer=word_tokenizer, seq_len=100, out=out, template="dolly")
        found.add(manifest.fingerprint)
        assert manifest.sft is not None
        assert manifest.format_version == 4
        names |= set(manifest.sft.too_long)
    assert len(found) == 1
    assert len(names) == 2


def test_append_keeps_the_names_out(tmp_path: Path, corpus: Path, word_tokenizer: Path, packed: Manifest):
    again(tmp_path, [renamed(corpus)], word_tokenizer)
    found = set()
    for name in ("packed", "again"):
        more = tmp_path / name / "more of it"
        more.mkdir()
        for number in range(2):
            (more / f"{name}-{number}.jsonl").write_text(json.dumps({"text": f"{number + 4} 5 6"}) + "\n")
        found.add(append(tmp_path / name, [more]).fingerprint)
    assert len(found) == 1
    assert found != {packed.fingerprint}


def test_dropout_of_a_tokenizer_is_off(tmp_path: Path, corpus: Path):
    """A BPE tokenizer with dropout gives other ids at every call."""
    pieces = ["</s>", *"0123456789", *(f"{a}{b}" for a in range(10) for b in range(10))]
    merges = [(str(a), str(b)) for a in range(10) for b in range(10)]
    found = set()
    for dropout in (0.5, 0.5, None):
        model = models.BPE({piece: number for number, piece in enumerate(pieces)}, merges, dropout=dropout)
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        manifest = again(tmp_path, [corpus], tmp_path / "tokenizer.json")
        found.add(manifest.splits["train"].shards[0].sha256)
        shutil.rmtree(tmp_path / "again")
    assert len(found) == 1
