"""Sources at URLs. A local server replaces each service: S3 (moto), Google Cloud Storage, the Hugging Face hub."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from exact_titan.cli import main
from exact_titan.dataset import Manifest
from exact_titan.packing import pack
from tests.packing.conftest import Documents, contents

OPTIONS = {"seq_len": 64, "part_bytes": 8000}


@contextlib.contextmanager
def server(*command: str, port: int) -> Iterator[None]:
    """Run a local server until the context ends."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                break
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    variables = {"AWS_ENDPOINT_URL": f"http://localhost:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in (variables | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    with server("-m", "moto.server", "-p", str(port), port=port):
        fsspec.filesystem("s3").mkdir("corpus")
        yield "s3://corpus/books"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    command = ("-m", "gcp_storage_emulator", "start", "--port", str(port), "--in-memory", "--default-bucket", "corpus")
    with server(*command, port=port):
        yield "gs://corpus/books"


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub's API that lists and downloads the files of a dataset."""

    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/datasets/team/books/resolve/"):
            name = path.split("/", 6)[6]
            content = self.files[name]
            self.answer(content, {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": "0" * 40})
        elif path.startswith("/api/datasets/team/books/tree/"):
            self.answer(json.dumps([self.entry(name) for name in sorted(self.files)]).encode())
        elif path.startswith("/api/datasets/team/books"):
            self.answer(json.dumps({"id": "team/books", "sha": "0" * 40, "siblings": []}).encode())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        entries = [self.entry(name) for name in sorted(self.files) if name in asked]
        if not entries:
            entries = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]
        self.answer(json.dumps(entries).encode())

    def entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serve a folder as a dataset of a local hub. The import of huggingface_hub reads the hub's address."""
    with ThreadingHTTPServer(("localhost", 0), Hub) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()

        def put(folder: Path) -> str:
            Hub.files = {f"data/{name}": content for name, content in contents(folder).items()}
            return "hf://datasets/team/books/data"

        monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{served.server_port}")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(documents.folder / "hf-home"))
        yield put
        served.shutdown()


def local_contents(documents: Documents) -> dict[str, bytes]:
    """Return the dataset of the same files on the disk."""
    folder = documents.write("books", files=5, documents=60, longest=60)
    pack([folder], tokenizer=documents.folder / "tokenizer.json", out=documents.folder / "local", **OPTIONS)
    return contents(documents.folder / "local")


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_an_object_store_gives_the_bytes_of_the_disk(
    documents: Documents, store: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    url = request.getfixturevalue(store)
    expected = local_contents(documents)
    fsspec.url_to_fs(url)[0].put(str(documents.folder / "books"), url, recursive=True)
    pack([url], tokenizer=documents.folder / "tokenizer.json", out=documents.folder / "out", **OPTIONS)
    assert contents(documents.folder / "out") == expected

    file = f"{url}/003.jsonl"
    pack([file], tokenizer=documents.folder / "tokenizer.json", out=documents.folder / "one", **OPTIONS)
    (record,) = Manifest.read(documents.folder / "one").sources
    content = (documents.folder / "books" / "003.jsonl").read_bytes()
    assert (record.name, record.bytes, record.sha256) == (
        "003.jsonl",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )

    capfd.readouterr()
    for name in (f"{url}/none", url.replace("corpus", "another")):
        arguments = ["pack", name, "--tokenizer", str(documents.folder / "tokenizer.json"), "--out", "x"]
        assert main(arguments) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"exact-titan: error: source {name}")
        assert error.count("\n") == 1


def test_the_hub_gives_the_bytes_of_the_disk(documents: Documents, hub: Callable[[Path], str]) -> None:
    expected = local_contents(documents)
    url = hub(documents.folder / "books")
    command = [sys.executable, "-m", "exact_titan.cli", "pack", url, "--tokenizer", "tokenizer.json", "--out", "out"]
    # One part instead of four, because the command line uses the default size of a part.
    pack(
        [documents.folder / "books"],
        tokenizer=documents.folder / "tokenizer.json",
        out=documents.folder / "whole",
        seq_len=64,
    )
    result = subprocess.run([*command, "--seq-len", "64"], cwd=documents.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found, whole = contents(documents.folder / "out"), contents(documents.folder / "whole")
    assert {name: found[name] for name in found if name != "manifest.json"} == {
        name: whole[name] for name in whole if name != "manifest.json"
    }
    one, other = (Manifest.read(documents.folder / name).sources[0] for name in ("out", "whole"))
    assert (one.sha256, one.documents, one.name) == (other.sha256, other.documents, "data")
    assert expected


def test_a_store_whose_library_is_missing(
    documents: Documents, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    arguments = ["pack", "s3://corpus/x", "--tokenizer", str(documents.folder / "tokenizer.json"), "--out", "x"]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.endswith(": pip install 'exact-titan[s3]'\n")
    assert "s3://corpus/x cannot be read" in error
    assert os.listdir(documents.folder) == ["tokenizer.json"]
