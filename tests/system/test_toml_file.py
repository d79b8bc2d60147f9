"""TOML files of runs and studies. A mistake is one line that names the file."""

import pytest

from exact_titan.errors import InputError
from exact_titan.launch.arguments import read as read_arguments
from exact_titan.packing.corpus import Corpus
from exact_titan.study.spec import read_study
from exact_titan.system.json_files import DEEPEST
from exact_titan.system.toml_file import read_toml_file

HOSTILE = {
    "nested lists": b"a = " + b"[" * 100_000,
    "nested tables": b"a = " + b"{b = " * 50_000,
    "a key of many parts": b"a" + b".a" * 50_000 + b" = 1",
    "a table of many parts": b"[a" + b".a" * 50_000 + b"]",
    "a number of many digits": b"a = " + b"9" * 5000,
    "another encoding": b'a = "\xff"',
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path, content):
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    readers = (
        read_toml_file,
        lambda path: read_arguments(["--config", str(path)]),
        lambda path: Corpus.of([path]),
        read_study,
    )
    for read in readers:
        with pytest.raises(InputError, match=r"run\.toml") as refused:
            read(file)
        assert len(str(refused.value)) < 400


def test_a_file_without_end_is_not_read(tmp_path):
    with (tmp_path / "run.toml").open("wb") as out:
        out.truncate(2**40)
    with pytest.raises(InputError, match="it has more than 16,777,216 bytes"):
        read_toml_file(tmp_path / "run.toml")


def test_line_ends_and_marks_of_other_editors_are_read(tmp_path):
    (tmp_path / "run.toml").write_bytes(b'\xef\xbb\xbfa = 1\r\nb = "x"\rc = [1]\n')
    assert read_toml_file(tmp_path / "run.toml") == {"a": 1, "b": "x", "c": [1]}


def test_the_depth_of_real_files_is_far_from_the_limit(tmp_path):
    (tmp_path / "run.toml").write_text("a = " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))
    assert read_toml_file(tmp_path / "run.toml")["a"]
