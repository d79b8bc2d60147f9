import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.record_files import RecordAppender, read_header, read_records, write_records


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "records.jsonl"
    write_records(file, {"kind": "k"}, [{"text": "ä\u2028\n"}, {"n": 1}])
    assert read_header(file) == {"kind": "k"}
    assert list(read_records(file)) == [{"text": "ä\u2028\n"}, {"n": 1}]
    assert [one.name for one in file.parent.iterdir()] == ["records.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, {}, [{"n": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(file, {}, [{"n": float("nan")}])
    assert list(read_records(file)) == [{"n": 1}]
    assert [one.name for one in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the first line is not a header"),
        (b"[]\n", "the first line is not a header"),
        (b'{"header": 1}\n', "the first line is not a header"),
        (b"\xff\n", "the first line is not a header"),
    ],
)
def test_a_file_without_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_header(file)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"header": {}}\n{"n": 1}\n{"n":\n')
    with pytest.raises(InputError, match=r"records\.jsonl: line 3 is not a record"):
        list(read_records(file))
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "missing.jsonl")


def test_an_incomplete_end_is_passed_over_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"header": {}}\n{"n": 1}\n{"n": 2')
    assert list(read_records(file, incomplete_end=True)) == [{"n": 1}]
    with pytest.raises(InputError, match="line 3"):
        list(read_records(file))


def test_appending_continues_after_the_last_complete_record(tmp_path: Path) -> None:
    file = tmp_path / "answers" / "records.jsonl"
    with RecordAppender(file, {"first": True}) as out:
        out.append({"n": 1})
    with file.open("ab") as torn:
        torn.write(b'{"n": 2')
    with RecordAppender(file, {"first": False}) as out:
        out.append({"n": 3})
    assert read_header(file) == {"first": True}
    assert list(read_records(file)) == [{"n": 1}, {"n": 3}]


def _append_forever(file: Path) -> None:
    with RecordAppender(file, {}) as out:
        for n in range(10**9):
            out.append({"n": n, "text": "x" * 5000})


def test_a_killed_writer_loses_at_most_the_record_that_it_writes(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    writer = multiprocessing.get_context("fork").Process(target=_append_forever, args=(file,))
    writer.start()
    while not file.exists() or file.stat().st_size < 200_000:
        assert writer.is_alive()
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    before = [one["n"] for one in read_records(file, incomplete_end=True)]
    assert before == list(range(len(before)))
    with RecordAppender(file, {}) as out:
        out.append({"n": -1})
    assert [one["n"] for one in read_records(file)] == [*before, -1]
