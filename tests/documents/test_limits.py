"""Memory is bounded by the package, not by the source (exact_titan/documents/limits.py)."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from exact_titan.documents import json_documents, limits
from exact_titan.documents.sources import Source
from exact_titan.errors import InputError
from tests.support import ROOT


def read(file: Path) -> Iterator[str]:
    source = Source(file, "text")
    with source.open(source.files[0]) as reader:
        yield from reader.texts()


def error_of(file: Path) -> str:
    with pytest.raises(InputError) as error:
        list(read(file))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{file.parent}/")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of at most 64 KiB, and at most 1,000 values."""
    for name, value in {"DOCUMENT_BYTES": 2**16, "CSV_ROW": 2**16, "ROWS_BYTES": 2**14, "VALUES": 1000}.items():
        monkeypatch.setattr(limits, name, value)


LONG = "a" * 2**16
TEXTS = ["one", LONG[:-100], "three", LONG]


def write(file: Path, texts: list[str]) -> None:
    """Write texts in the format of the file's suffix."""
    objects = [{"text": text} for text in texts]
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in objects))
    elif file.name == "objects.json":
        file.write_text("\n".join(json.dumps(one, indent=1) for one in objects))
    elif file.suffix == ".json":
        file.write_text(json.dumps(objects))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([["text"], *([text] for text in texts)])
    elif file.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"text": texts}), file, compression="zstd")
    else:
        table = pa.table({"text": texts})
        with pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("d.jsonl", r"d\.jsonl, line 4: the line has more than"),
        ("d.json", r"d\.json, line 1: the object has ([\d,]+ bytes, )?more than"),
        ("objects.json", r"objects\.json, line 10: the object has ([\d,]+ bytes, )?more than"),
        ("d.csv", r"d\.csv, row 4: the row has more than"),
        ("d.parquet", r"d\.parquet, row 4: the row has 65,5\d\d bytes, more than"),
        ("d.arrow", r"d\.arrow, row 4: the row has 65,5\d\d bytes, more than"),
    ],
)
def test_a_document_of_every_format_is_bounded(tmp_path: Path, name: str, place: str) -> None:
    file = tmp_path / name
    write(file, TEXTS[:3])
    assert list(read(file)) == TEXTS[:3]
    write(file, [*TEXTS[:3], LONG + "more"])
    most = r" 65,536 bytes \(0\.0625 MiB\): divide the document, or remove it"
    assert re.fullmatch(place + most, error_of(file)), error_of(file)


@pytest.mark.usefixtures("small")
def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(LONG)
    assert list(read(tmp_path / "d.txt")) == [LONG]
    (tmp_path / "d.txt").write_text(LONG + "é")
    assert error_of(tmp_path / "d.txt").startswith("d.txt: the file is one document, and has more than 65,536 bytes")


@pytest.mark.usefixtures("small")
def test_the_number_of_values_is_bounded(tmp_path: Path) -> None:
    """A list of lists needs 20 times as much memory as its text."""
    nest = '{"text": "a, b", "x": [' + "[]," * 999 + "[]]}\n"
    for name, content in {"d.jsonl": nest, "d.json": "[" + nest + "]", "d.csv": "text\n" + "a," * 1001}.items():
        (tmp_path / name).write_text(content)
        assert re.match(r"d\.\w+, (line|row) 1: more than 1,000 values: keep only the text", error_of(tmp_path / name))
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": ", " * 2000}))
    (tmp_path / "d.csv").write_text('text\n"' + ", " * 900 + '"\n')
    for name in ("d.jsonl", "d.csv"):
        assert list(read(tmp_path / name)), "commas in a text are no values"


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    for depth, opening, closing in ((100_000, "[", "]"), (100_000, '{"a": ', "}")):
        value = opening * depth + "1" + closing * depth
        (tmp_path / "d.jsonl").write_text('{"text": "a", "x": ' + value + "}\n")
        assert "line 1: not JSON (depth limit exceeded" in error_of(tmp_path / "d.jsonl")
        (tmp_path / "d.json").write_text('[{"text": "a"},\n{"text": "b", "x": ' + value + "}]")
        assert (
            error_of(tmp_path / "d.json") == "d.json, line 2: not JSON (nested deeper than 1024): write the file again"
        )


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_objects_that_arrive_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_documents, "CHUNK", chunk)
    texts = ['a "quoted" {word} [1, 2]', "back\\slash\\", "\\", '"', "tab\tand\nlines", "東京", '\\"', "{[,\"'"]
    objects = [{"id": {"a": [[], {}], "b": [1, 2]}, "text": text, "empty": ""} for text in texts]
    for ensure_ascii in (True, False):
        (tmp_path / "d.json").write_text("\n " + json.dumps(objects, indent=1, ensure_ascii=ensure_ascii) + "\n\n")
        assert list(read(tmp_path / "d.json")) == texts


def test_runs_of_blank_lines_keep_the_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(
        b'{"text": "a"}\n' + b" \n\r\n" * 200_000 + b'  {"text": "b"}\n' + b"\n" * 999 + b"[]"
    )
    assert error_of(tmp_path / "d.jsonl").startswith("d.jsonl, line 401002: not a JSON object")


BOMBS = """
import resource, sys
from exact_titan.documents import limits
from exact_titan.documents.sources import Source
limits.DOCUMENT_BYTES, limits.EXPANDED_BYTES, limits.EXPANSION = 2**26, 2**27, 1000  # a faster test
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for name in sys.argv[1:]:
    try:
        source = Source(name, "text")
        with source.open(source.files[0]) as reader:
            print(name, sum(1 for _ in reader.texts()), reader.no_text)
    except ValueError as error:
        print(error)
# Not ru_maxrss: a process inherits the value of the process that has started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("peak", int(status["VmHWM"].split()[0]) >> 10)
"""


def test_small_files_that_expand_to_many_gib(tmp_path: Path) -> None:
    zeros = zstandard.compress(b"\0" * 2**26)
    (tmp_path / "zeros.jsonl.zst").write_bytes(zeros * 64)
    (tmp_path / "lines.jsonl.zst").write_bytes(zstandard.compress(b"\n" * 2**26) * 64)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["7 " * 2**22]))
    pa.parquet.write_table(pa.table({"text": text}), tmp_path / "dictionary.parquet", compression="zstd")
    zipped = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(tmp_path / "dictionary.arrow", pa.schema({"text": text.type}), options=zipped) as out:
        out.write_table(pa.table({"text": text}))
    names = ["zeros.jsonl.zst", "lines.jsonl.zst", "dictionary.parquet", "dictionary.arrow"]
    command = [sys.executable, "-c", BOMBS, *names]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    zero, lines, parquet, arrow, peak = run.stdout.splitlines()
    assert zero.startswith("zeros.jsonl.zst, line 1: the line has more than 67,108,864 bytes (64 MiB): divide")
    assert re.match(r"lines\.jsonl\.zst expands too far: [\d,]+ bytes expand to [\d,]+ bytes or more", lines)
    assert parquet.startswith("dictionary.parquet expands too far: ")
    assert arrow.startswith("dictionary.arrow expands too far: ")
    assert int(peak.split()[1]) < 500
