"""The instructions of the worked example in docs/evaluation.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exact_titan.packing import pack
from tests.support import ROOT

pytest_plugins = ["tests.text_fixtures"]


@pytest.mark.slow
def test_the_instructions_are_the_same_every_time_and_pack(tmp_path: Path, bpe_tokenizer: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        script = [sys.executable, str(ROOT / "scripts/stdlib_instructions.py"), str(file), "--rows", "30"]
        subprocess.run(script, check=True, capture_output=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert len(rows) == 30
    assert {tuple(row) for row in rows} == {("instruction", "context", "response")}
    assert {bool(row["context"]) for row in rows} == {True, False}
    manifest = pack(files[:1], tokenizer=bpe_tokenizer, seq_len=16384, out=tmp_path / "packed", template="dolly")
    assert manifest.sources[0].documents == 30
