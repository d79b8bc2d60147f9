"""A worker or a command that is killed: one line that names the part, no process left, and the same command resumes."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from exact_titan.documents import tokenizer as tokenizers
from exact_titan.errors import InputError
from exact_titan.packing import Execution, executors, pack, tasks
from tests.packing.conftest import Documents, contents, finished, kill_the_reader, packing, until

OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "part_bytes": 4000}


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pack_here(documents: Documents, *sources: str, workers: int = 2, **options: object) -> None:
    pack(
        [documents.folder / source for source in sources],
        tokenizer=documents.folder / "tokenizer.json",
        **{**OPTIONS, "out": documents.folder / "out", "execution": Execution(workers=workers)} | options,
    )


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_and_names_its_part(
    documents: Documents, pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "PROCESS_BYTES", 1)
    monkeypatch.setattr(executors, "WORKER_BYTES", 0)
    causes = {
        signal.SIGKILL: r"often the kernel's out-of-memory killer: use fewer --workers, or a machine with more memory",
        signal.SIGABRT: r"a library failed, or memory ran out: run the same command again, with fewer --workers",
        signal.SIGSEGV: r"a library failed, or memory ran out: run the same command again, with fewer --workers",
        signal.SIGTERM: r"another program ended the worker: run the same command again",
    }
    kept: dict[int, Path] = {}
    with ThreadPoolExecutor(1) as thread:
        for number, cause in causes.items():
            worker = thread.submit(kill_the_reader, pipe, number, documents)
            with pytest.raises(InputError) as error:
                pack_here(documents, "a", "pipe.jsonl")
            ended = time.monotonic()
            process, killed = worker.result()
            assert str(error.value) == (
                f"a worker was ended by {number.name} while it packed part 2 of 2, {pipe}: {cause} "
                "(1 parts are finished: the same command resumes from these parts)"
            )
            assert ended - killed < 10
            assert not is_alive(process)
            assert not list(documents.folder.glob(".out.partial/parts/*.*")), "unfinished parts are removed"
            kept = kept or finished(documents.folder)
            assert kept.keys() == finished(documents.folder).keys(), "the finished part is not packed again"
    pipe.unlink()
    pipe.write_text('{"text": "1 2 3"}\n')
    pack_here(documents, "a", "pipe.jsonl")
    assert kept.keys() <= {file.stat().st_ino for file in (documents.folder / "out").glob("*.safetensors")}
    pack_here(documents, "a", "pipe.jsonl", out=documents.folder / "whole", workers=1)
    assert contents(documents.folder / "whole") == contents(documents.folder / "out")
    assert not list(documents.folder.glob(".out*"))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_command(documents: Documents, pipe: Path) -> None:
    options = {**OPTIONS, "sources": ["a", "pipe.jsonl"], "out": "out", "execution": {"workers": 2}}
    command = packing(documents.folder, **options)
    worker, _ = kill_the_reader(pipe, signal.Signals(signal.SIGCONT), documents)
    fork_server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert is_alive(fork_server)
    assert fork_server != command.pid
    os.kill(fork_server, signal.SIGKILL)
    until(lambda: not is_alive(fork_server))
    time.sleep(0.5)
    assert command.poll() is None, "the workers go on without their fork server"
    assert is_alive(worker)
    command.kill()
    command.communicate()
    until(lambda: not is_alive(worker))
    pipe.unlink()
    pipe.write_text('{"text": "1 2 3"}\n')
    pack_here(documents, "a", "pipe.jsonl")
    assert sorted(os.listdir(documents.folder)) == ["a", "out", "pipe.jsonl", "tokenizer.json"]


def test_memory_and_panics_name_the_part(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    documents.write("a", files=3, documents=60, longest=60)

    def fail(error: BaseException) -> Callable[..., None]:
        def failing(*_: object, **__: object) -> None:
            raise error

        return failing

    files = f"{documents.folder}/a/000.jsonl to {documents.folder}/a/002.jsonl (3 files)"
    for error, cause in {
        MemoryError("9 GiB"): "memory ran out (9 GiB): use fewer --workers, or a machine with more memory",
        RuntimeError("can't start new thread"): "no further thread can start (can't start new thread): use fewer",
    }.items():
        monkeypatch.setattr(tasks, "pack_part", fail(error))
        with pytest.raises(InputError) as caught:
            pack_here(documents, "a", workers=1, part_bytes=10**6)
        assert str(caught.value).startswith(f"part 1 of 1, {files}: {cause}")
    monkeypatch.undo()

    bug = KeyError("bug")
    monkeypatch.setattr(tasks, "pack_part", fail(bug))
    with pytest.raises(KeyError):
        pack_here(documents, "a", workers=1, part_bytes=10**6)
    assert bug.__notes__ == [f"exact_titan packed part 1 of 1, {files}"]
    monkeypatch.undo()

    def panic(*_: object) -> None:
        # The library asserts that a stride is shorter than the window of the truncation.
        loaded = Tokenizer.from_file(str(documents.folder / "tokenizer.json"))
        loaded.enable_truncation(8, stride=2)
        text = loaded.to_str().replace('"stride":2', '"stride":9')
        Tokenizer.from_str(text).encode("1 " * 20)

    monkeypatch.setattr(tokenizers.DocumentTokenizer, "encode", panic)
    with pytest.raises(InputError, match=r"part 1 of 1, .*: a library panicked \(`stride` must be .*: leave out the"):
        pack_here(documents, "a", workers=1, part_bytes=10**6)
    assert not list(documents.folder.glob(".out*"))


def test_a_file_that_changes_while_it_is_read_is_refused(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    documents.write("a", files=3, documents=60, longest=60)
    file = documents.folder / "a" / "001.jsonl"
    content = file.read_text()
    original = tasks.pack_part

    def changing(part: tasks.Part, *arguments: object, **options: object) -> None:
        if part.number == 1:
            change()
        original(part, *arguments, **options)

    monkeypatch.setattr(tasks, "pack_part", changing)
    kept: dict[int, Path] = {}
    for change in (  # noqa: B007
        lambda: file.write_text(content + '{"text": "1 2 3"}\n'),
        lambda: file.write_text(content[:-9]),
        lambda: file.write_text(content.replace("1", "2")),
        file.unlink,
    ):
        with pytest.raises(InputError, match=r"001\.jsonl (has changed|is gone) since packing began: .* \(1 parts are"):
            pack_here(documents, "a", workers=1)
        kept = kept or finished(documents.folder)
        assert finished(documents.folder).keys() == kept.keys()
        file.write_text(content)
    monkeypatch.undo()
    pack_here(documents, "a", workers=1)
    assert kept.keys() <= {one.stat().st_ino for one in (documents.folder / "out").glob("*.safetensors")}
