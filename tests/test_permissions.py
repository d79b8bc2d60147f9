"""Files and folders without permission: every command names the file in one line and ends with 2."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, become_ordinary_user, pack_lengths

CASES = [
    ("packed/manifest.json", "inspect packed"),
    ("packed/manifest.json", "verify packed"),
    ("packed/train-00000.safetensors", "verify packed"),
    ("packed/train-00000.safetensors", "window packed 0"),
    ("packed/train-lengths.npy", "window packed 0"),
    ("packed/train-work.bin", "verify packed"),
    ("packed/tokenizer/tokenizer.json", "window packed 0"),
    ("packed", "inspect packed"),
    ("documents.jsonl", "pack documents.jsonl --tokenizer tokenizer.json --seq-len 16 --out p"),
    ("tokenizer.json", "pack documents.jsonl --tokenizer tokenizer.json --seq-len 16 --out p"),
    ("closed", "pack documents.jsonl --tokenizer tokenizer.json --seq-len 16 --out closed/p"),
    ("closed", "inspect packed --png closed/p.png"),
    ("closed", "export packed --out closed/p"),
    ("closed", "configs closed --copy Llama-3.1-8B-16k"),
    ("closed", "study run smollm2 --out closed/p"),
    ("closed", "eval prepare probe --model packed/tokenizer --lengths 256 --out closed/p"),
    ("closed", "eval report closed/models/a"),
    ("closed", "compare closed/run"),
    ("run.toml", "plan --config run.toml --nproc 1"),
    ("run.toml", "train run.toml"),
]


@pytest.mark.slow
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    place = pack_lengths(tmp_path, [30] * 8, seq_len=16).folder.parent
    (place / "closed").mkdir()
    (place / "run.toml").touch()
    # A process of its own: only a process without threads may give up its capabilities.
    command = [sys.executable, "-m", "tests.test_permissions", str(place)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for (closed, arguments), (code, error) in zip(CASES, json.loads(done.stdout), strict=True):
        assert code == 2, (arguments, error)
        assert error.startswith("exact-titan: error: ")
        assert error.count("\n") == 1
        assert "Permission denied" in error, (arguments, error)
        assert closed in error


def results(place: Path) -> list[tuple[int, str]]:
    """Run every command with its file closed, as an ordinary user. Return the exit codes and the messages."""
    from exact_titan.cli import main

    become_ordinary_user()
    os.chdir(place)
    found = []
    for closed, arguments in CASES:
        mode, error = Path(closed).stat().st_mode & 0o777, io.StringIO()
        Path(closed).chmod(0)
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments.split())
        Path(closed).chmod(mode)
        found.append((code, error.getvalue()))
    return found


if __name__ == "__main__":
    print(json.dumps(results(Path(sys.argv[1]))))
