"""Packing with datatrove's Slurm and Ray executors on real clusters."""

import gzip
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from exact_titan.dataset import Manifest
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import Execution, pack
from exact_titan.packing.clusters import SlurmJob
from exact_titan.slurm_options import SlurmOptions
from tests.packing.conftest import Documents, contents, finished, kill_the_reader, packing
from tests.support import word_tokenizer

OPTIONS = {"seq_len": 64, "val_fraction": 0.1, "part_bytes": 8000}


@pytest.mark.parametrize("content", ["--user=me", "1 2", "", "1;2", "-1"])
def test_a_number_of_a_job_that_is_something_else_is_refused(tmp_path: Path, content: str) -> None:
    """``scancel --user=me`` cancels all jobs of the user."""
    (tmp_path / "slurm-job").write_text(content)
    with pytest.raises(InputError, match=r"slurm-job holds '.*', not the number of a Slurm job"):
        SlurmJob(SimpleNamespace(path=tmp_path)).is_active()  # type: ignore[arg-type]


@pytest.mark.slow
def test_slurm_packs_the_book_chapters_on_two_nodes(
    tmp_path: Path, slurm: Path, book_chapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    # Every word becomes the same token. This test does not test tokenizing.
    word_tokenizer(tmp_path / "tokenizer.json", 10)
    (tmp_path / "books").mkdir()
    for number in range(6):
        with gzip.open(tmp_path / "books" / f"{number}.jsonl.gz", "wt") as out:
            out.writelines(json.dumps({"text": text}) + "\n" for text in book_chapters[number::6])
    options = {"seq_len": 16384, "val_fraction": 0.05, "part_bytes": 2_000_000, "policy": "best_fit"}
    execution = {"executor": "slurm"}
    slurm_options = {"mem_per_cpu_gb": 1, "time": "10:00", "sbatch": ["comment=packing"]}
    process = packing(tmp_path, sources=["books"], out="out", execution=execution, slurm=slurm_options, **options)
    nodes: set[str] = set()
    while process.poll() is None:
        queue = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%N"], capture_output=True, text=True)
        nodes |= set(queue.stdout.split())
        time.sleep(0.2)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert nodes == {"n1", "n2"}
    assert re.search(r"packing: Slurm job \d+, 5 tasks|packing: Slurm job \d+, 6 tasks", err), err

    pack([tmp_path / "books"], tokenizer=tmp_path / "tokenizer.json", out=tmp_path / "here", **options)
    assert contents(tmp_path / "here") == contents(tmp_path / "out")
    assert Manifest.read(tmp_path / "out").sources[0].documents == len(book_chapters)
    assert list(verify(tmp_path / "out"))


@pytest.mark.slow
def test_a_second_command_waits_for_the_slurm_job_and_reports_its_errors(
    documents: Documents, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    documents.write("a", files=12, documents=60, longest=60)
    broken = documents.folder / "a" / "011.jsonl"
    content = broken.read_text()
    broken.write_text(content + "{\n")
    given = {"sources": ["a"], "execution": {"executor": "slurm", "workers": 1, "tasks": 3}, **OPTIONS}
    given["slurm"] = {"mem_per_cpu_gb": 1}

    process = packing(documents.folder, out="out", **given)
    job = documents.folder / ".out.partial" / "slurm-job"
    while not job.is_file() and process.poll() is None:
        time.sleep(0.05)
    number = job.read_text()
    process.kill()
    process.wait()

    process = packing(documents.folder, out="out", **given)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"Slurm job {number}" not in err
    last = err.splitlines()[-1]
    assert re.search(
        r"InputError: a/011\.jsonl, line 61: not JSON .*: the same command resumes from these parts\)$", last
    ), err

    broken.write_text(content)
    process = packing(documents.folder, out="out", **given)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Slurm job" in err
    pack([documents.folder / "a"], tokenizer=documents.folder / "tokenizer.json", out=documents.folder / "b", **OPTIONS)
    assert contents(documents.folder / "b") == contents(documents.folder / "out")


@pytest.mark.slow
def test_a_job_that_slurm_refuses(documents: Documents, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.chdir(documents.folder)
    documents.write("a", files=1, documents=3, longest=60)
    execution = Execution("slurm", slurm=SlurmOptions(partition="none"))
    with pytest.raises(InputError, match="--executor slurm: sbatch refused the job, exit code 1, see above"):
        pack(["a"], tokenizer=Path("tokenizer.json"), out=Path("out"), execution=execution, **OPTIONS)
    for option in ("=ml", "account="):
        execution = Execution("slurm", slurm=SlurmOptions(sbatch=(option,)))
        with pytest.raises(InputError, match=f"--slurm.sbatch {option}: write NAME=VALUE, such as account=ml"):
            pack(["a"], tokenizer=Path("tokenizer.json"), out=Path("out"), execution=execution, **OPTIONS)
    assert sorted(os.listdir()) == ["a", "tokenizer.json"]


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_reports_errors(documents: Documents) -> None:
    pytest.importorskip("ray")
    documents.write("a", files=6, documents=60, longest=60)
    given = {"sources": ["a"], "execution": {"executor": "ray"}, "slurm": {"mem_per_cpu_gb": 1}, **OPTIONS}
    process = packing(documents.folder, out="out", **given)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    pack([documents.folder / "a"], tokenizer=documents.folder / "tokenizer.json", out=documents.folder / "b", **OPTIONS)
    assert contents(documents.folder / "b") == contents(documents.folder / "out")

    (documents.folder / "a" / "003.jsonl").write_text("{\n")
    process = packing(documents.folder, out="c", **given)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "InputError: a/003.jsonl, line 1: not JSON" in err.splitlines()[-1], err


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_a_killed_task_is_named_with_its_part(
    documents: Documents, pipe: Path, executor: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    else:
        monkeypatch.setenv("SLURM_CONF", str(request.getfixturevalue("slurm")))
    given = {"sources": ["a", "pipe.jsonl"], "execution": {"executor": executor}, "slurm": {"mem_per_cpu_gb": 1}}
    process = packing(documents.folder, out="out", **given, **OPTIONS | {"part_bytes": 4000})
    kill_the_reader(pipe, signal.SIGKILL, documents)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    log = r", see \S+/slurm_logs/\d+_\d\.out \(.*Killed\)" if executor == "slurm" else ""
    assert re.search(
        rf"InputError: 1 of 2 parts were not packed: the task that packed part 2 of 2, pipe\.jsonl was killed{log}: "
        r"often by the out-of-memory killer or the time limit: give .* run the same command again to resume "
        r"\(1 parts are finished",
        err.splitlines()[-1],
    ), err
    assert len({shard.parent for shard in finished(documents.folder).values()}) == 1
