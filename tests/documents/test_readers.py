import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from exact_titan.documents import json_documents
from exact_titan.documents.sources import DocumentReader, Source
from exact_titan.errors import InputError

TEXTS = [
    "one two",
    "größer",
    'a\nb,"c"\r\n',
    "東京 " * 5000,
    "x" * 140_000,
]  # csv limits a cell to 131,072 characters by default
OBJECTS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(one) + "\n" for one in OBJECTS).encode()


def read(file: Path) -> list[str]:
    source = Source(file, "text")
    with source.open(source.files[0]) as reader:
        found = list(reader.texts())
        assert reader.progress == 1
        assert reader.digest() == DocumentReader(file, file.name, "", "text").digest(), (
            "the digest is of the whole file"
        )
    return found


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
CONTENTS = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": LINES,
    "-array.json": b"\xef\xbb\xbf\n [" + LINES.strip().replace(b"}\n", b"} ,\n") + b"]\n",
    "-pretty.json": json.dumps(OBJECTS, indent=1, ensure_ascii=False).encode(),
    "-objects.json": "\n".join(json.dumps(one, indent=2) for one in OBJECTS).encode(),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_json_of_every_form_and_compression(tmp_path: Path, kind: str, compression: str) -> None:
    file = tmp_path / f"d{kind}{compression}".upper()
    # Two frames, like the output of cat.
    half = len(CONTENTS[kind]) // 2
    file.write_bytes(b"".join(map(COMPRESS[compression], (CONTENTS[kind][:half], CONTENTS[kind][half:]))))
    assert read(file) == TEXTS
    if compression:
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"is broken or cut short|is cut short"):
            read(file)


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.DictWriter(stream, ["id", "text"]).writeheader()
        csv.DictWriter(stream, ["id", "text"]).writerows(OBJECTS)
    assert read(file) == TEXTS


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"day": pa.array([-1_000_000] * len(TEXTS), pa.date32()), "text": TEXTS})
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=2)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=2)
    for name in ("file.arrow", "stream.arrow"):
        assert read(tmp_path / name) == TEXTS
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-100])
        with pytest.raises(InputError, match=r"\.arrow is (not a whole arrow file|cut short)"):
            read(tmp_path / name)


@pytest.mark.parametrize("column", ["id", "day"])
def test_only_the_text_column_is_read(tmp_path: Path, column: str) -> None:
    """Python's dates do not have the year -768."""
    days = pa.array([-1_000_000, date(2020, 1, 1)], pa.date32())
    pa.parquet.write_table(pa.table({column: days, "text": ["a", "b"]}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == ["a", "b"]


def test_a_broken_cell_is_named_with_its_row(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(),
        40,
        [
            None,
            pa.py_buffer(b"".join(k.to_bytes(4, "little") for k in range(41))),
            pa.py_buffer(b"a" * 20 + b"\xff" * 20),
        ],
    )
    pa.parquet.write_table(pa.table({"text": broken}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet, row 21: 'text' cannot be read \(.*invalid start byte"):
        read(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.jsonl",
            b'{"text": "a"}\n{"text": "b" "c"}\n',
            r"d\.jsonl, line 2: not JSON \([^)]* at character 14\): cor",
        ),
        ("d.jsonl", b"\x1f\x8b\x08\x00", r"d\.jsonl, line 1: not JSON, the file is compressed: end its name with \.gz"),
        ("d.json", lzma.compress(b"{}"), r"d\.json, line 1: not JSON, the file is compressed: end its name with \.xz"),
        ("d.csv", bz2.compress(b"text"), r"d\.csv, line 1: not CSV, the file is compressed: end its name with \.bz2"),
        (
            "d.txt",
            COMPRESS[".zst"](b"a"),
            r"d\.txt, line 1: not plain text, the file is compressed: end its name with \.zst",
        ),
        ("d.json.xz", COMPRESS[".zst"](b"{}"), r"d\.json\.xz is a \.zst file: end its name with \.zst instead of \.xz"),
        ("d.jsonl.gz", b'{"text": "a"}', r"d\.jsonl\.gz is JSON without compression: take \.gz from the end of its"),
        (
            "d.json",
            b'[{"text": "a"},\n\n{"text": "b" "c"}\n]' + b" " * 99,
            r"d\.json, line 3: not JSON \(unexpected character, expected ',' or '}'\): write the file again",
        ),
        ("d.json", b'[{"text": "a"},\n{"text": "b"}', r"d\.json, line 2: the array is cut short: write the file again"),
        ("d.json", b'[{"text": "a"},\n{"text": "b', r"d\.json, line 2: not JSON \(a string or an object has no end\)"),
        ("d.json", b'[{"text": "a"}\n{"text": "b"}]', r"d\.json, line 2: not JSON \(, or \] is missing\)"),
        ("d.json", b'[{"text": "a"}]\n[]', r"d\.json, line 2: not JSON \(text after the end of the array\)"),
        ("d.jsonl", b'[{"text": "a"}]', r"d\.jsonl, line 1: not a JSON object, but an array: end .* with \.json"),
        ("d.json", b'[\n"a"]', r"d\.json, line 2: not a JSON object"),
        ("d.json", b'[{"text": "\\ud800"}]', r"d\.json, line 1: not JSON"),
        ("d.json", b'[{"text":\n "\xff"}]', r"d\.json, after line 1: not UTF-8 \(invalid start byte\)"),
        ("d.json", b'{"text": "a"}\n{"text": 1}', r"d\.json, line 2: 'text' is int, not text: see --text-key"),
        ("d.csv", b"id,body\n1,a\n", r"d\.csv has no column 'text' \(it has id, body\): see --text-key"),
        ("d.csv", b"text,id,text\na,1,b\n", r"d\.csv has several columns 'text': give each column its own name"),
        ("d.json", b'{"s": NaN, "text": "\\ud800"}', r"d\.json, line 1: not JSON"),
        ("d.jsonl", b'{"s": NaN, "text": "\xff"}', r"d\.jsonl, line 1: not UTF-8"),
        ("d.jsonl", b'{"s": NaN, "text": NAN}', r"d\.jsonl, line 1: not JSON"),
        ("d.csv", b"id,text\n1,a\n2,b,c\n", r"d\.csv, row 2 \(line 3\) has 3 cells, the first row has 2"),
        ("d.csv", b'id,text\n1,"a\n2,b\n', r"d\.csv, row 1 \(line 3\) is not CSV \(unexpected end of data\)"),
        ("d.csv", b"id,text\n1,\xff\n", r"d\.csv, row 1 or later: not UTF-8"),
        ("d.txt", b"version https://git-lfs.github.com/spec/v1\noid", r"d\.txt is a pointer of Git LFS.*git lfs pull"),
        ("d.arrow", b"junk", r"d\.arrow is cut short"),
        ("d.arrow", b"junk\0\0\0\0", r"d\.arrow is not a whole arrow file"),
    ],
)
def test_the_error_names_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"content": ["a"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet has no column 'text' \(it has content\): see --text-key"):
        read(tmp_path / "d.parquet")


def test_two_columns_of_the_same_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("d.parquet", "d.arrow"):
        with pytest.raises(InputError, match=rf"{name} has several columns 'text': give each column its own name"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "array.json"])
def test_numbers_that_json_does_not_have(tmp_path: Path, name: str) -> None:
    lines = ['{"text": "a", "s": NaN, "t": [-Infinity]}', '{"text": NaN}', '{"s": Infinity, "text": "NaN Infinity"}']
    (tmp_path / name).write_text(f"[{', '.join(lines)}]" if name.startswith("array") else "\n".join(lines))
    assert read(tmp_path / name) == ["a", "NaN Infinity"]


def test_a_large_array_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_documents, "CHUNK", 2**14)
    (tmp_path / "d.json").write_text(json.dumps([{"text": "word " * 200}] * 4000))
    source = Source(tmp_path / "d.json", "text")
    with source.open(source.files[0]) as reader:
        tracemalloc.start()
        assert sum(1 for _ in reader.texts()) == 4000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20 + 2**19, "the file has 4 MB, the stream's buffers have 1.25 MiB"


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    options = zstandard.ZstdCompressionParameters(window_log=31, compression_level=3, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    (tmp_path / "d.jsonl.zst").write_bytes(stream.compress(LINES) + stream.flush())
    assert read(tmp_path / "d.jsonl.zst") == TEXTS
