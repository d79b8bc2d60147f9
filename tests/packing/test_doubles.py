"""The same data twice: under two names in one packing, and in a dataset that grows."""

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from exact_titan.dataset import Manifest
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import Corpus, CorpusSource, append, pack

pytest_plugins = ["tests.text_fixtures"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder ``corpus`` with a.jsonl and b.jsonl, and token file ``t.ds``."""
    (tmp_path / "corpus").mkdir()
    for name in "ab":
        write(tmp_path / "corpus" / f"{name}.jsonl", f"{ord(name)} 1 2 3")
    tokens = TokenizedFile(str(tmp_path), "t.ds", token_size=2)
    tokens.write([5, 6, 7, 0], None)
    tokens.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, *texts: str) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["corpus", "corpus/../corpus/a.jsonl"], r"a\.jsonl belongs to two sources, corpus \(as corpus/a\.jsonl\) and"),
        (["corpus", "linked/b.jsonl"], r"linked/b\.jsonl belongs to two sources, corpus \(as corpus/b\.jsonl\) and"),
        (["corpus/a.jsonl", "hard.jsonl"], r"hard\.jsonl belongs to two sources, corpus/a\.jsonl"),
        (["corpus", "file://{}/corpus/a.jsonl"], r"a\.jsonl belongs to two sources, corpus"),
        (["t.ds", "hard.ds"], r"hard\.ds belongs to two sources, t\.ds"),
        (["twice"], r"twice/(a|c)\.jsonl and twice/(a|c)\.jsonl are the same file: name the file once"),
    ],
)
def test_two_names_of_one_file(folder: Path, word_tokenizer: Path, sources: list[str], message: str) -> None:
    (folder / "linked").symlink_to("corpus")
    os.link("corpus/a.jsonl", "hard.jsonl")
    for suffix in (".ds", ".ds.index"):
        os.link(f"t{suffix}", f"hard{suffix}")
    (folder / "twice").mkdir()
    for name in "ac":
        (folder / "twice" / f"{name}.jsonl").symlink_to("../corpus/a.jsonl")
    with pytest.raises(InputError, match=message):
        pack([one.format(folder) for one in sources], tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    assert not list(folder.glob("*out*"))


def test_two_patterns_that_match_one_file(folder: Path, word_tokenizer: Path) -> None:
    corpus = Corpus([CorpusSource(path="corpus", files=files) for files in ("*.jsonl", "a*")])
    with pytest.raises(InputError, match=r"corpus/a\.jsonl belongs to two sources, corpus and corpus"):
        pack(corpus, tokenizer=word_tokenizer, seq_len=4, out=folder / "out")


def test_a_file_and_its_compressed_copy(folder: Path, word_tokenizer: Path) -> None:
    Path("corpus/a.jsonl.gz").write_bytes(gzip.compress(Path("corpus/a.jsonl").read_bytes()))
    message = r"corpus/a\.jsonl\.gz and .*corpus/a\.jsonl differ only in the suffix of their compression"
    for sources in (["corpus"], ["corpus/../corpus/a.jsonl", "corpus/a.jsonl.gz"]):
        with pytest.raises(InputError, match=message):
            pack(sources, tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    corpus = Corpus([CorpusSource(path="corpus", files="*.jsonl")])
    assert pack(corpus, tokenizer=word_tokenizer, seq_len=4, out=folder / "out").sources[0].documents == 2


def test_copies_of_a_file_are_counted(folder: Path, word_tokenizer: Path) -> None:
    shutil.copy("corpus/a.jsonl", "corpus/a (1).jsonl")
    shutil.copy("corpus/b.jsonl", "b.jsonl")
    manifest = pack(["corpus", "b.jsonl"], tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    doubles = {"files with the same content as an earlier file": 1}
    assert [source.remarks for source in manifest.sources] == [doubles, doubles]
    assert [source.documents for source in manifest.sources] == [3, 1]


def test_append_of_a_folder_that_has_grown(folder: Path, word_tokenizer: Path) -> None:
    pack(["corpus"], tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    write(Path("corpus/c.jsonl"), "99 1 2 3")
    manifest = append(folder / "out", ["corpus"])
    old, new = manifest.sources
    assert (old.documents, new.documents) == (2, 1)
    assert new.passed_over == {"in the dataset already": 2}
    assert Manifest.read(folder / "out") == manifest
    assert list(verify(folder / "out"))
    with pytest.raises(InputError, match=r"out holds source corpus already \(as corpus\): leave it out"):
        append(folder / "out", ["corpus"])


@pytest.mark.parametrize(
    ("first", "second"),
    [("corpus", "corpus/a.jsonl"), ("corpus/a.jsonl", "copy"), ("t.ds", "t.ds")],
)
def test_append_of_known_files(folder: Path, word_tokenizer: Path, first: str, second: str) -> None:
    Path("copy").mkdir()
    shutil.copy("corpus/a.jsonl", "copy/other.jsonl")
    before = pack([first], tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    with pytest.raises(InputError, match=rf"out holds source .* already \(as {Path(first).name}\): leave it out"):
        append(folder / "out", [second])
    assert Manifest.read(folder / "out") == before


def test_a_dataset_without_contents_keeps_its_fingerprint(folder: Path, word_tokenizer: Path) -> None:
    """An older dataset has no digests of its files. The digest of a source that is one file is the file's digest."""
    pack(["corpus/a.jsonl"], tokenizer=word_tokenizer, seq_len=4, out=folder / "out")
    file = folder / "out" / "manifest.json"
    content = json.loads(file.read_text())
    del content["sources"][0]["contents"], content["fingerprint"], content["sft"]
    content["format_version"] = 2
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    file.write_text(json.dumps({**content, "fingerprint": fingerprint}))
    assert Manifest.read(folder / "out").fingerprint == fingerprint
    Path("corpus/b.jsonl").unlink()
    with pytest.raises(InputError, match=r"out holds source corpus already \(as a\.jsonl\)"):
        append(folder / "out", ["corpus"])


def test_what_is_passed_over_is_not_in_the_fingerprint(folder: Path, word_tokenizer: Path) -> None:
    fingerprints = set()
    for name in ("out1", "out2"):
        manifest = pack(["corpus"], tokenizer=word_tokenizer, seq_len=4, out=folder / name)
        assert Manifest.read(folder / name) == manifest
        fingerprints.add(manifest.fingerprint)
        Path("corpus/_SUCCESS").touch()
    assert manifest.sources[0].passed_over == {"hidden or temporary: the name begins with . or _": 1}
    assert len(fingerprints) == 1
