"""Sources that are no whole files: changed bytes, frames, padding, devices, sockets, pipes, errors of the disk."""

import bz2
import gzip
import json
import lzma
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from exact_titan.documents import limits, streams
from exact_titan.documents.sources import Source
from exact_titan.documents.token_files import ended_documents, open_token_file
from exact_titan.errors import InputError
from tests.documents.test_token_files import write_megatron

TEXTS = ["one two", "größer", "x" * 500, 'a,b\n"c"', None] * 4
LINES = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(file: Path) -> list[str]:
    source = Source(file, "text")
    with source.open(source.files[0]) as reader:
        return list(reader.texts())


def write(file: Path) -> None:
    table = pa.table({"text": TEXTS, "id": range(len(TEXTS))})
    if file.suffix in COMPRESS:
        file.write_bytes(COMPRESS[file.suffix](LINES))
    elif file.suffix == ".parquet":
        pa.parquet.write_table(table, file, compression="zstd", use_dictionary=file.name != "plain.parquet")
    elif file.name == "stream.arrow":
        with pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table, max_chunksize=7)
    elif file.name == "file.arrow":
        with pa.ipc.new_file(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
            out.write_table(table, max_chunksize=7)
    elif file.suffix == ".json":
        file.write_text(json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1))
    elif file.suffix == ".csv":
        file.write_text("id,text\n" + '1,"a,b\nc"\n2,x\n' * 20)
    elif file.suffix == ".idx":
        write_megatron(file.with_suffix(""), [[[1, 2, 3]], [[4], [5, 6]], [list(range(8))]], "uint16")
    elif file.name == "d.ds.index":
        np.arange(20, dtype=np.uint16).tofile(file.with_suffix(""))
        np.array([5, 8, 20], np.uint64).tofile(file)
    else:
        file.write_bytes(LINES)


def changed(content: bytes, chance: random.Random) -> bytes:
    """Return the content with one change: a bit, a byte, eight bytes, a shorter file or further bytes."""
    found, at = bytearray(content), chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            found[at] ^= 1 << chance.randrange(8)
        case 1:
            found[at] = chance.randrange(256)
        case 2:
            found[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), (2**62).to_bytes(8, "little")])
        case 3:
            del found[at:]
        case _:
            found[at:at] = chance.randbytes(9)
    return bytes(found)


NAMES = """
d.jsonl d.jsonl.gz d.jsonl.zst d.jsonl.bz2 d.jsonl.xz d.json d.csv d.parquet plain.parquet stream.arrow file.arrow d.idx
d.ds.index
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_changed_bytes_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write(file)
    content, chance = file.read_bytes(), random.Random(name)
    messages = []
    for _ in range(40):
        file.write_bytes(changed(content, chance))
        try:
            if name.endswith((".idx", ".index")):
                tokens = open_token_file(file if file.suffix == ".idx" else file.with_suffix(""))
                list(ended_documents(tokens, eos_id=7, vocab_size=100, dtype=np.dtype(np.uint16)))
            else:
                read(file)
                source = Source(file, "text")
                with source.open(source.files[0]) as reader:
                    list(reader.rows())
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_frames_padding_and_what_follows(tmp_path: Path, suffix: str) -> None:
    file, whole = tmp_path / f"d.jsonl{suffix}", COMPRESS[suffix](LINES)
    texts = [text for text in TEXTS if text]
    for content in (whole + whole, whole + bytes(512), whole + bytes(8) + whole, whole + COMPRESS[suffix](b"")):
        file.write_bytes(content)
        assert read(file) == texts * content.count(whole)
    for content in (whole + b"garbage", whole[:-1], whole[:10], whole + whole[:20], b"garbage"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"d\.jsonl\.\w+ is broken or cut short \(.+\): download or compress"):
            read(file)
    file.write_bytes(b"")
    assert read(file) == []
    if suffix == ".zst":
        file.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0skip" + whole)
        assert read(file) == texts, "a frame of a user's own data is skipped"


def test_the_window_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_BYTES", 2**20)
    options = zstandard.ZstdCompressionParameters(window_log=24, compression_level=3)
    frame = zstandard.ZstdCompressor(compression_params=options).compressobj()
    (tmp_path / "d.jsonl.zst").write_bytes(frame.compress(LINES) + frame.flush())
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**24}]
    (tmp_path / "d.jsonl.xz").write_bytes(lzma.compress(LINES, filters=filters))
    for name in ("d.jsonl.zst", "d.jsonl.xz"):
        with pytest.raises(InputError, match=rf"{name} is broken or cut short \(.*(memory|Memory).*\)"):
            read(tmp_path / name)


def test_devices_sockets_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PIPE_SECONDS", 0.2)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.mkfifo(tmp_path / "pipe.parquet")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jsonl"))
        for name, why in {
            "zero.jsonl": "source .*zero.jsonl cannot be read: a device is not a file: name a file",
            "socket.jsonl": "source .*socket.jsonl cannot be read: a socket is not a file: name a file",
            "pipe.jsonl": r"pipe\.jsonl cannot be read: no program writes to this pipe, after 0\.2 s: start",
            "pipe.parquet": "pipe.parquet is a pipe, and a table is not read from start to end: give a file",
        }.items():
            with pytest.raises(InputError, match=why):
                read(tmp_path / name)
        (tmp_path / "d.jsonl").write_bytes(LINES)
        assert Source(tmp_path, "text").passed_over == {"no regular file": 4}
    late = threading.Timer(0.05, (tmp_path / "pipe.jsonl").write_bytes, [LINES])
    late.start()
    assert read(tmp_path / "pipe.jsonl") == [text for text in TEXTS if text]
    with pytest.raises(OSError, match="a folder is not a file"):
        streams.DigestedFile(tmp_path)


@pytest.mark.parametrize("name", ["a\0b.jsonl", "a" * 300 + ".jsonl", "d.jsonl/x.jsonl", "loop.jsonl"])
def test_paths_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(LINES)
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(InputError, match=r"^source .*: .*$"):
        Source(tmp_path / name, "text")


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(streams.DigestedFile):
        def readinto(self, buffer: bytearray) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("exact_titan.documents.sources.DigestedFile", Failing)
    for name in ("d.jsonl", "d.txt", "d.json", "d.csv", "d.jsonl.gz", "d.jsonl.zst", "d.jsonl.xz"):
        (tmp_path / name).write_bytes(LINES)
        with pytest.raises(InputError, match=rf"{name} cannot be read: Input/output error"):
            read(tmp_path / name)
