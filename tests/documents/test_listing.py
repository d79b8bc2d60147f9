import os
from pathlib import Path

import fsspec
import pytest

from exact_titan.documents.sources import Source
from exact_titan.errors import InputError


def write(folder: Path, *names: str) -> Path:
    """Write a document with the text of its name into every file."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"text": "{name}"}}')
    return folder


def names(source: Source) -> list[str]:
    return [file.name for file in source.files]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", "a.jsonl", "sub/b.jsonl")
    other = write(tmp_path / "disk2", "c.jsonl", "deep/d.jsonl")
    (corpus / "more").symlink_to(other)
    (other / "deep" / "up").symlink_to(corpus)
    (corpus / "sub" / "self").symlink_to(corpus / "sub")
    (corpus / "e.jsonl").symlink_to(write(tmp_path, "target.jsonl") / "target.jsonl")
    source = Source(corpus, "text")
    assert names(source) == ["a.jsonl", "e.jsonl", "more/c.jsonl", "more/deep/d.jsonl", "sub/b.jsonl"]
    assert source.passed_over == {"links to a folder above": 2}


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", "a.jsonl")
    for name in ("b.jsonl", "more", "c.bin", ".hidden"):
        (corpus / name).symlink_to("missing")
    for name in ("b.jsonl", "more"):
        with pytest.raises(InputError, match=rf"{name} is a link that leads to nothing \(missing\): download or mount"):
            Source(corpus, "text", name)
    with pytest.raises(InputError, match=r"b\.jsonl is a link that leads to nothing"):
        Source(corpus / "b.jsonl", "text")
    (corpus / "more").unlink()
    assert names(Source(corpus, "text", "a*")) == ["a.jsonl"], "the pattern leaves the link out"
    (corpus / "b.jsonl").unlink()
    (corpus / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(InputError, match=r"loop\.jsonl is a link that leads to nothing"):
        Source(corpus, "text")


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", ".a.jsonl.swp", "._a.jsonl", "_temporary/0/a.jsonl", ".git/x.txt", "_SUCCESS")
    write(tmp_path, "README.md", "sub/b.md", "LICENSE", "t.bin", "t.idx", "t.ds", "t.ds.index", "dataset_info.json")
    (tmp_path / "cut.jsonl.gz").touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    source = Source(tmp_path, "text")
    assert names(source) == ["a.jsonl"]
    assert source.passed_over == {
        "descriptions that the library datasets writes": 1,
        "empty": 1,
        "hidden or temporary: the name begins with . or _": 5,
        "no regular file": 1,
        "not a readable kind: .md": 2,
        "not a readable kind: no suffix": 1,
        "token files: name each file as a source": 4,
    }
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"no file of a readable kind \(.*\): passed over 1 descriptions .*, 1 empty, 5"
    ):
        Source(tmp_path, "text")


def test_the_caches_of_datasets_and_packed_datasets_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "data-00000-of-00001.arrow", "cache-1c80317fa3b1799d.arrow", "cache-ab_00000_of_00002.arrow")
    write(tmp_path, "sub/packed/manifest.json", "sub/packed/val-lengths.npy", "sub/packed/tokenizer/tokenizer.json")
    write(tmp_path, "other/manifest.json")
    source = Source(tmp_path, "text")
    assert names(source) == ["data-00000-of-00001.arrow", "other/manifest.json"]
    assert source.passed_over == {
        "packed datasets": 1,
        "results that the library datasets keeps: cache-*.arrow": 2,
    }
    assert Source(tmp_path / "cache-1c80317fa3b1799d.arrow", "text").files
    with pytest.raises(InputError, match=r"sub/packed is a packed dataset, and has no documents: give the documents"):
        Source(tmp_path / "sub" / "packed", "text")


def test_a_pointer_of_git_lfs_is_found_before_any_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    for name in ("b.parquet", "b.md"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"b\.parquet is a pointer of Git LFS, not the file: run `git lfs pull`"):
        Source(tmp_path, "text")
    assert names(Source(tmp_path, "text", "*.jsonl")) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("path", "way_out"),
    [("t", r"give .*/t\.bin$"), ("d", r"give .*/d\.ds$"), ("*.jsonl", "a source is not a pattern: give the folder")],
)
def test_what_a_path_that_does_not_exist_may_mean(tmp_path: Path, path: str, way_out: str) -> None:
    write(tmp_path, "t.bin", "t.idx", "d.ds", "d.ds.index", "a.jsonl")
    with pytest.raises(InputError, match=rf"no such file or folder: {way_out}"):
        Source(tmp_path / path, "text")


def test_files_beyond_the_pattern_and_rare_suffixes_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "data/a.jsonl", "data/b.jsonl", "test/c.jsonl", "README.md")
    source = Source(tmp_path, "text", "data/*")
    assert names(source) == ["data/a.jsonl", "data/b.jsonl"]
    assert source.passed_over == {"the name does not match data/*": 2}
    write(tmp_path, *(f"x.{letter}" for letter in "abcdefghij"), "y.j", "y.i")
    counts = Source(tmp_path, "text").passed_over
    assert len(counts) == 9
    assert counts["not a readable kind: .j"] == 2
    assert counts["not a readable kind: other suffixes"] == 3


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jsonl", "closed/b.jsonl")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    # The tests may run as root, and root may list every folder.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"source folder .*/closed cannot be listed: Permission denied"):
        Source(tmp_path, "text")
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name != "b.jsonl")
    with pytest.raises(InputError, match=r"source file .*/closed/b\.jsonl cannot be read: Permission denied"):
        Source(tmp_path, "text")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).touch()
    assert names(Source(tmp_path, "text")) == ["a.jsonl"]
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    bad.write_text("{}")
    for path in (tmp_path, bad):
        with pytest.raises(InputError, match=r"/caf\\xe9\.jsonl: the name is not UTF-8: rename the file"):
            Source(path, "text")


def test_a_url_passes_over_the_same_files(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a.JSONL", "_temporary/a.jsonl", "README.md", "sub/.b.jsonl"):
        fs.pipe(f"/corpus14/{name}", b'{"text": "a"}')
    fs.pipe("/corpus14/empty.jsonl", b"")
    source = Source("memory://corpus14", "text")
    assert names(source) == ["a.JSONL"]
    hidden = "hidden or temporary: the name begins with . or _"
    assert source.passed_over == {"empty": 1, hidden: 2, "not a readable kind: .md": 1}
    fs.rm("/corpus14", recursive=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("team/books", r"no such file or folder: for a dataset of the Hugging Face hub, give hf://datasets/team/books"),
        ("../team/books", r"no such file or folder$"),
        ("team/books.jsonl", r"no such file or folder$"),
        ("https://huggingface.co/datasets/team/books/tree/main", r"give hf://datasets/team/books$"),
    ],
)
def test_the_way_to_the_hub(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source(path, "text")
