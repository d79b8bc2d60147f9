"""Sources at http:// URLs, from a local server."""

import contextlib
import errno
import functools
import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exact_titan.documents import remote
from exact_titan.documents.listing import SourceFile
from exact_titan.documents.sources import Source
from exact_titan.errors import InputError


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The server of the standard library, without its log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "sub").mkdir()
    (folder / "README.md").write_text("not read")
    for name in ("a b.jsonl", "sub/c.json"):
        (folder / name).write_text('{"text": "a document"}\n')
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


def test_a_page_and_a_file(url: str) -> None:
    folder = Source(f"{url}/", "text")
    assert [(file.name, file.bytes) for file in folder.files] == [("a%20b.jsonl", 23), ("sub/c.json", 23)]
    assert folder.passed_over == {"not a readable kind: .md": 1}
    for source in (folder, Source(f"{url}/a%20b.jsonl", "text"), Source(f"{url}/sub/c.json?download=true", "text")):
        for file in source.files:
            with source.open(file) as reader:
                assert list(reader.texts()) == ["a document"]


class Changing(Quiet):
    """A server whose file has another version at every request."""

    requests = 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).requests += 1
        content = b'{"text": "a document"}\n' * (type(self).requests if "longer" in self.path else 1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{type(self).requests if "etag" in self.path else 1}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.mark.parametrize("change", ["longer", "etag", "nothing"])
def test_a_file_that_changes_while_it_is_read(change: str) -> None:
    with http.server.ThreadingHTTPServer(("localhost", 0), Changing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source(f"http://localhost:{server.server_port}/{change}.jsonl", "text")
        if change == "nothing":
            with source.open(source.files[0]) as reader:
                assert list(reader.texts()) == ["a document"]
        else:
            message = rf"{change}\.jsonl has changed since packing began: wait until no program writes the file"
            with pytest.raises(InputError, match=message), source.open(source.files[0]):
                pass
        server.shutdown()


def test_what_is_not_there(url: str) -> None:
    for path in ("none.jsonl", "none/"):
        with pytest.raises(InputError, match=rf"source {url}/{path}: no such file or folder"):
            Source(f"{url}/{path}", "text")
    with pytest.raises(InputError, match=r"source http://localhost:1/a\.jsonl cannot be read: Cannot connect to host"):
        Source("http://localhost:1/a.jsonl", "text")


class Attacker(Quiet):
    """A server that fails in the way that its path names."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        way = self.path.split("/")[1]
        if way == "silent":
            time.sleep(5)
        elif way == "error":
            self.send_error(500)
        elif way == "garbage":
            self.wfile.write(b"\xff\x00" * 5000)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            with contextlib.suppress(OSError):
                while way == "endless" and self.command == "GET":
                    self.wfile.write(b"<p>" * 2**14)
        self.close_connection = True


@pytest.fixture(scope="module")
def attacker() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("localhost", 0), Attacker) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("silent/a.jsonl", "cannot be read: the server did not answer in time"),
        ("silent/", "cannot be read: the server did not answer in time"),
        ("error/a.jsonl", "cannot be read: 500, message='Internal Server Error'"),
        ("garbage/a.jsonl", "cannot be read: 400, message="),
        ("endless/", "cannot be read: a page of more than 1,048,576 bytes is no list of files"),
    ],
)
def test_a_server_cannot_hang_or_fill_a_pack(
    attacker: str, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.3)
    monkeypatch.setattr(remote, "_PAGE_BYTES", 2**20)
    begin = time.monotonic()
    with pytest.raises(InputError) as error:
        Source(f"{attacker}/{path}", "text")
    assert time.monotonic() - begin < 4
    assert str(error.value).startswith(f"source {attacker}/{path} {message}")
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def copies() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith(".exact-titan.")}


def test_copies_are_removed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    abandoned = f".exact-titan.{socket.gethostname()}.{ended.stdout.strip()}"
    (tmp_path / abandoned / "tmp").mkdir(parents=True)
    other = f".exact-titan.{socket.gethostname()}.{os.getppid()}"
    (tmp_path / other).mkdir()
    remote.remove_abandoned_copies.cache_clear()
    source = Source(f"{url}/", "text")
    assert copies() == {other}, "a process that runs keeps its copies"
    own = f".exact-titan.{socket.gethostname()}.{os.getpid()}"
    with source.open(source.files[0]), source.open(source.files[1]):
        assert copies() == {other, own}
    assert copies() == {other}
    gone = SourceFile("gone.jsonl", 1, "")
    with pytest.raises(InputError, match="no such file or folder"), source.open(gone):
        pass
    assert copies() == {other}


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    message = rf"a\.jsonl cannot be copied to {tmp_path}: No space left on device: set TMPDIR to a folder with room"
    with pytest.raises(InputError, match=message), remote.access("a.jsonl"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    message = "TMPDIR cannot be written: No such file or directory"
    copy = remote.copied("http://localhost/a.jsonl", "", "a.jsonl", "a.jsonl", 0)
    with pytest.raises(InputError, match=message), copy:
        pass
