import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.listing import SourceFile
from exact_titan.documents.sources import DocumentReader, Source
from exact_titan.errors import InputError


def texts(source: Source) -> list[str]:
    return [text for file in source.files for text in read(source, file)[0]]


def read(source: Source, file: SourceFile) -> tuple[list[str], DocumentReader]:
    with source.open(file) as reader:
        found = list(reader.texts())
        assert reader.progress == 1
        return found, reader


TEXTS = ["one two", "größer", "a\nb\r\n", "東京 " * 50_000]
LINES = "".join(json.dumps({"id": 7, "media": "unused", "text": text}) + "\n" for text in TEXTS).encode()


def as_jsonl(folder: Path) -> Path:
    (folder / "d.jsonl").write_bytes(LINES)
    return folder / "d.jsonl"


def as_gzip(folder: Path) -> Path:
    # The file has two gzip members, like the output of `cat a.gz b.gz`.
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]))
    return folder / "d.jsonl.gz"


def as_zstd(folder: Path) -> Path:
    compress = zstandard.ZstdCompressor().compress
    (folder / "d.jsonl.zst").write_bytes(compress(LINES[:50]) + compress(LINES[50:]))
    return folder / "d.jsonl.zst"


def as_parquet(folder: Path) -> Path:
    table = pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "d.parquet", row_group_size=3)
    return folder / "d.parquet"


def as_folder(folder: Path) -> Path:
    """Write a file of every kind. The names sort in the order of the texts."""
    (folder / "all" / "sub").mkdir(parents=True)
    (folder / "all" / "a.txt").write_bytes(TEXTS[0].encode())
    (folder / "all" / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": TEXTS[1]}).encode()))
    (folder / "all" / "notes.md").write_text("not read")
    (folder / "all" / "sub" / "c.txt").write_bytes(TEXTS[2].encode())
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[3:]}), folder / "all" / "sub" / "d.parquet")
    return folder / "all"


@pytest.mark.parametrize("write", [as_jsonl, as_gzip, as_zstd, as_parquet, as_folder])
def test_every_kind_gives_the_same_documents(
    tmp_path: Path, write: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert texts(Source(write(tmp_path), "text")) == TEXTS
    assert capfd.readouterr() == ("", ""), "datatrove does not log to the terminal"


@pytest.mark.parametrize("write", [as_jsonl, as_gzip, as_zstd, as_parquet])
def test_what_is_kept_of_a_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    source = Source(path, "text")
    (file,) = source.files
    assert (source.name, file.name, file.bytes) == (path.name, path.name, path.stat().st_size)
    digest = FileDigest(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with source.open(file) as reader:
        next(reader.texts())
        assert 0 < reader.progress <= 1
        assert reader.digest() == digest, "the digest is of the whole file, also after a partial read"
    assert read(source, file)[1].digest() == digest


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    folder = as_folder(tmp_path)
    source = Source(folder, "text")
    assert source.name == "all"
    assert [file.name for file in source.files] == ["a.txt", "b.jsonl.gz", "sub/c.txt", "sub/d.parquet"]
    assert [file.name for file in Source(folder, "text", "sub/*").files] == ["sub/c.txt", "sub/d.parquet"]
    with pytest.raises(InputError, match=r"all: the folder has no file of a readable kind \(.*, none\*\)"):
        Source(folder, "text", "none*")
    before = source.files[0]
    (folder / "a.txt").write_text("other")
    assert Source(folder, "text").files[0] != before, "a changed file has another version"


def test_documents_without_text_are_counted(tmp_path: Path) -> None:
    documents = [{"text": "a"}, {}, {"text": ""}, {"text": " \n\t"}, {"text": None}, {"text": "b", "metadata": "x"}]
    (tmp_path / "d.jsonl").write_text("\n\n".join(map(json.dumps, documents)) + "\n\n")
    source = Source(tmp_path / "d.jsonl", "text")
    found, reader = read(source, source.files[0])
    assert found == ["a", "b"]
    assert reader.no_text == 4


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert texts(Source(tmp_path, "text")) == ["hello", "hello"]


def test_text_key(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"content": "a", "text": "b"}')
    assert texts(Source(tmp_path / "d.jsonl", "content")) == ["a"]


def cut(content: bytes) -> bytes:
    return content[: len(content) * 3 // 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"text": "a"}\n{"text": \n', r"d\.jsonl, line 2: not JSON \(.*\): correct or remove the line"),
        ("d.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}', r"d\.jsonl, line 3: not UTF-8 .*: convert the file to UTF-8"),
        ("d.jsonl", b'{"text": "\\ud800"}', r"d\.jsonl, line 1: not JSON"),
        ("d.jsonl", b'"text"', r"d\.jsonl, line 1: not a JSON object"),
        ("d.jsonl", b'{"text": "a"}\n{"text": ["a"]}', r"d\.jsonl, line 2: 'text' is list, not text"),
        ("d.txt", b"a\xe4", r"d\.txt is not UTF-8 \(.* at byte 1\): convert it to UTF-8"),
        ("d.jsonl.gz", cut(gzip.compress(LINES, mtime=0)), r"d\.jsonl\.gz is broken or cut short"),
        ("d.jsonl.gz", b"plain", r"d\.jsonl\.gz is broken or cut short"),
        ("d.jsonl.zst", cut(zstandard.ZstdCompressor().compress(LINES)), r"d\.jsonl\.zst is broken or cut short"),
        ("d.jsonl.zst", b"plain text", r"d\.jsonl\.zst is broken or cut short"),
        ("d.parquet", b"PAR1 and so on, PAR1", r"d\.parquet is not a whole parquet file"),
        ("d.parquet", b"", r"d\.parquet is not a whole parquet file"),
        ("d.md", b"a", r"d\.md: not a file of a readable kind \(\.jsonl, "),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        texts(Source(tmp_path / name, "text"))


def test_parquet_cut_short_or_with_bytes_for_text(tmp_path: Path) -> None:
    file = as_parquet(tmp_path)
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(InputError, match="is not a whole parquet file"):
        texts(Source(file, "text"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", "a"], "raw": [b"a", b"b"]}), file)
    with pytest.raises(InputError, match=r"d\.parquet, row 1: 'raw' is bytes, not text"):
        texts(Source(file, "raw"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        Source(tmp_path / "none", "text")
    with pytest.raises(InputError, match="the folder has no file of a readable kind"):
        Source(tmp_path, "text")
