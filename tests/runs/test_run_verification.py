"""``exact-titan verify RUN`` names every bad file of a run's checkpoints."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from exact_titan.cli import main
from tests.runs.test_checkpoint_manifest import save


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with two checkpoints of the same sizes and different contents."""
    for step in (3, 4):
        save(tmp_path, step)
    return tmp_path


def verify(folder: Path, capsys) -> tuple[int, str, str]:
    code = main(["verify", str(folder)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_whole_checkpoints_are_whole(run, capsys):
    code, out, _ = verify(run, capsys)
    assert code == 0
    files = sorted(path for step in (3, 4) for path in (run / f"checkpoint/step-{step}").iterdir())
    for file in files:
        assert (f"ok   {file}: {file.stat().st_size:,} bytes\n" in out) == (file.name != "files.json")
    assert out.endswith(f"the checkpoints of {run} are whole\n")


def test_every_changed_file_of_the_right_size_is_named(run, capsys):
    swapped, flipped = run / "checkpoint/step-4/__0_0.distcp", run / "checkpoint/step-3/.metadata"
    shutil.copy(run / "checkpoint/step-3/__0_0.distcp", swapped)
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    for folder, files in ((run, [flipped, swapped]), (swapped.parent, [swapped])):
        code, out, err = verify(folder, capsys)
        assert code == 2
        (line,) = err.splitlines()
        for file in files:
            assert f"BAD  {file}: its content is not the content of the save\n" in out
            assert str(file) in line
        assert out.count("BAD") == len(files)


def test_missing_digests_are_said(run, capsys):
    manifest = run / "checkpoint/step-4/files.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.write_text(json.dumps(content))
    code, out, _ = verify(run, capsys)
    assert code == 0
    assert f"{manifest.parent}: no SHA-256 of .metadata, __0_0.distcp, from an earlier version" in out


def test_incomplete_and_unlisted_checkpoints_are_bad(run, capsys):
    (run / "checkpoint/step-4/files.json").unlink()
    code, out, err = verify(run, capsys)
    assert code == 2
    assert f"BAD  {run}/checkpoint/step-4 is not complete: it has no files.json" in out
    assert "step-4 is not complete" in err
    shutil.rmtree(run / "checkpoint")
    (run / "checkpoint").mkdir()
    assert "has no checkpoint to check" in verify(run, capsys)[2]


@pytest.mark.parametrize("name", ["\ud800", "../a", "extra", "pipe"])
def test_a_hostile_list_of_files_is_damaged(run, capsys, name):
    checkpoint = run / "checkpoint/step-4"
    (checkpoint / "extra").write_bytes(b"")
    os.mkfifo(checkpoint / "pipe")
    content = json.loads((checkpoint / "files.json").read_text())
    content["sha256"][name] = hashlib.sha256(b"").hexdigest()
    (checkpoint / "files.json").write_text(json.dumps(content))
    code, _, err = verify(run, capsys)
    assert code == 2
    assert f"{checkpoint} is not complete: its files.json is damaged" in err


@pytest.mark.parametrize("name", ["files.json", ".metadata"])
def test_a_pipe_ends_no_command(run, capsys, name):
    checkpoint = run / "checkpoint/step-4"
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    code, _, err = verify(run, capsys)
    assert code == 2
    assert f"{checkpoint} is not complete: its {name} is " in err
