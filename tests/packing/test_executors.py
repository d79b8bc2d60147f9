"""Any executor gives the same bytes, and no finished part is packed again."""

import os
import re
import signal
import time

import pytest

from exact_titan.errors import InputError
from exact_titan.packing import Execution, executors, pack, part, tasks
from tests.packing.conftest import Documents, contents, finished, packing


@pytest.fixture
def corpus(documents: Documents) -> list[str]:
    """Seven parts. One part has a single file that is larger than a part. Two sources share another part."""
    documents.write("a", files=9, documents=60, longest=60)
    documents.write("b", files=1, documents=400, longest=60)
    return ["a", "b"]


OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "shard_tokens": 3000, "part_bytes": 16_000}


def test_any_number_of_workers_and_tasks_gives_the_same_bytes(documents: Documents, corpus: list[str]) -> None:
    options = {**OPTIONS, "sources": corpus}
    runs = [{"workers": 1}, {"workers": 2}, {"workers": 4, "tasks": 3}]
    processes = [packing(documents.folder, out=f"out{k}", execution=run, **options) for k, run in enumerate(runs)]
    for process in processes:
        assert process.wait(timeout=120) == 0, process.communicate()[1]
    first, *others = [contents(documents.folder / f"out{k}") for k in range(len(runs))]
    assert [other == first for other in others] == [True, True]
    assert len([name for name in first if name.startswith("train-0")]) > 8
    assert {name.split("/")[0] for name in contents(documents.folder)} >= {"a", "b", "out0", "out1", "out2"}
    assert not list(documents.folder.glob(".*")), "the work folders are removed"


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_resumes_with_the_unfinished_parts(documents: Documents, corpus: list[str], workers: int) -> None:
    options = {**OPTIONS, "sources": corpus, "execution": {"workers": workers}}
    documents.write("c", files=40, documents=100, longest=60)
    options["sources"] = [*corpus, "c"]
    process = packing(documents.folder, out="out", **options)
    while len(finished(documents.folder)) < 8 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (documents.folder / "out").exists()
    before = finished(documents.folder)
    assert before

    process = packing(documents.folder, out="out", **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    after = {file.stat().st_ino for file in (documents.folder / "out").glob("*.safetensors")}
    assert set(before) <= after, "finished parts were not packed again"
    assert not list(documents.folder.glob(".out*"))

    process = packing(documents.folder, out="whole", **options)
    assert process.communicate(timeout=120)[0] == out
    assert contents(documents.folder / "whole") == contents(documents.folder / "out")


def pack_here(documents: Documents, **options: object) -> None:
    sources = [documents.folder / name for name in documents.ids]
    given = {**OPTIONS, "tokenizer": documents.folder / "tokenizer.json", "out": documents.folder / "out"} | options
    pack(sources, **given)


def test_a_broken_file_is_named_and_the_rest_kept(documents: Documents, corpus: list[str]) -> None:
    file = documents.folder / "a" / "005.jsonl"
    content = file.read_text()
    file.write_text(content + "{\n")
    message = r"a/005\.jsonl, line 61: not JSON \(.*\): correct or remove the line \((\d) parts are finished: the same"
    with pytest.raises(InputError, match=message) as error:
        pack_here(documents)
    kept = finished(documents.folder)
    assert int(re.search(message, str(error.value))[1]) == len({file.parent for file in kept.values()}) > 0

    file.write_text(content)
    pack_here(documents)
    assert set(kept) <= {file.stat().st_ino for file in (documents.folder / "out").glob("*.safetensors")}
    pack_here(documents, out=documents.folder / "whole")
    assert contents(documents.folder / "whole") == contents(documents.folder / "out")


def test_an_error_in_another_process_is_the_same(
    documents: Documents, corpus: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (documents.folder / "b" / "000.jsonl").write_text("[]\n")
    monkeypatch.setattr(executors, "PROCESS_BYTES", 1)
    with pytest.raises(InputError, match=r"b/000\.jsonl, line 1: not a JSON object: a document must be a JSON object"):
        pack_here(documents, execution=Execution(workers=2))
    assert "Traceback" not in capfd.readouterr().err


def test_two_commands_at_one_time(documents: Documents, corpus: list[str]) -> None:
    documents.write("c", files=40, documents=100, longest=60)
    options = {**OPTIONS, "out": "out", "sources": [*corpus, "c"]}
    process = packing(documents.folder, execution={"workers": 1}, **options)
    while not finished(documents.folder):
        time.sleep(0.01)
    with pytest.raises(InputError, match=r"out: another process is packing it \(process \d+ on .*\): wait for that"):
        pack_here(documents)
    assert process.wait(timeout=120) == 0
    assert (documents.folder / "out" / "manifest.json").is_file()


def test_a_part_that_another_task_finished_first(
    documents: Documents, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the kill of a command whose workers stay alive: the second task discards its result."""

    def twice(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        original(*arguments, **options)

    original = part.pack_part
    monkeypatch.setattr(tasks, "pack_part", twice)
    pack_here(documents)
    monkeypatch.undo()
    pack_here(documents, out=documents.folder / "once")
    assert contents(documents.folder / "once") == contents(documents.folder / "out")


def test_an_invalid_execution_is_named(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("workers", "tasks"):
        with pytest.raises(InputError, match=f"--{name} is 0: give 1 or more"):
            Execution(**{name: 0})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="--executor slurm: there is no sbatch on this machine"):
        Execution("slurm")
