"""Sources at http:// URLs, from a local server."""

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest

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


def test_what_is_not_there(url: str) -> None:
    for path in ("none.jsonl", "none/"):
        with pytest.raises(InputError, match=rf"source {url}/{path}: no such file or folder"):
            Source(f"{url}/{path}", "text")
    with pytest.raises(InputError, match=r"source http://localhost:1/a\.jsonl cannot be read: Cannot connect to host"):
        Source("http://localhost:1/a.jsonl", "text")
