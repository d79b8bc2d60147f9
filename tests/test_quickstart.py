"""scripts/quickstart.sh in an empty folder, with fewer steps and less text, in the environment of the tests."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT


def quickstart(folder: Path, steps: int) -> str:
    small = {"VENV": sys.prefix, "STEPS": str(steps), "MEGABYTES": "1.5"}
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "results"]
    done = subprocess.run(command, cwd=folder, env=os.environ | small, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_quickstart_from_an_empty_folder_and_again(tmp_path):
    output = quickstart(tmp_path, steps=3)
    results = tmp_path / "results"
    for rule in ("standard", "exact"):
        # The log has lines for the first step and for every second step, and one line for the validation.
        section = output.split(f"Training with the {rule} loss")[1].split("\n== ")[0]
        assert re.findall(r"^step (\d+)/3 ", section, re.MULTILINE) == ["1", "2"]
        assert (results / rule / "checkpoint" / "step-3").is_dir()
    tail = re.search(r"tail \(>= 1024\): share ([\d.]+) %, loss mass standard ([\d.]+) %, exact ([\d.]+) %", output)
    assert tail
    share, standard, exact = map(float, tail.groups())
    assert share == standard
    # The tail's share of the mass, after an increase of the tail's mass by 0.15 (alpha). The division among the buckets
    # does not matter.
    assert exact == pytest.approx(100 * share * 1.15 / (100 + 0.15 * share), abs=0.1)
    table = output.split("Plain cross-entropy on the validation windows")[1]
    # Each bucket has one row: the targets, the cross-entropy of both runs and the difference, with standard errors.
    value = r"\d+\.\d{4} ±\d+\.\d{4}"
    rows = re.findall(rf"^ +(\d+-\d+) +([\d,]+) +({value}) +({value}) +([+-]{value})$", table, re.MULTILINE)
    assert [row[0] for row in rows][-1] == "2048-4096"
    assert len(rows) == 10
    for name in ("exposure.png", "quickstart.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    assert f"tensorboard --logdir {results}" in output

    begin = time.monotonic()
    again = quickstart(tmp_path, steps=3)
    assert time.monotonic() - begin < 120
    assert "Packing" not in again
    assert again.split("== Validation")[1].splitlines()[1:] == output.split("== Validation")[1].splitlines()[1:]
