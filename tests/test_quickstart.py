"""scripts/quickstart.sh in an empty folder, with fewer steps and pairs, in the environment of the tests."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT


def quickstart(folder: Path) -> str:
    study = (ROOT / "studies" / "quickstart.toml").read_text()
    for full, small in {
        r"^seeds = .*$": "seeds = [0, 1]",
        r"^training.steps = \d+$": "training.steps = 2",
        r"^validator.freq = \d+$": "validator.freq = 2",
    }.items():
        study, number = re.subn(full, small, study, flags=re.MULTILINE)
        assert number
    (folder / "small.toml").write_text(study)
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "results"]
    environment = os.environ | {"VENV": sys.prefix, "STUDY": "small.toml", "MEGABYTES": "1", "TOKENS": "60000"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def validation(run: Path, weights: str) -> dict:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (record,) = [one for one in records if one.get("weights") == weights and one["step"] == 2]
    return record


@pytest.mark.slow
def test_quickstart_from_an_empty_folder_and_again(tmp_path):
    output = quickstart(tmp_path)
    results = tmp_path / "results"
    assert "[5/5] extension, arm " in output
    tail = re.search(r"tail \(>= 128\): share ([\d.]+) %, loss mass standard ([\d.]+) %, exact ([\d.]+) %", output)
    assert tail
    share, standard, exact = map(float, tail.groups())
    assert share == standard
    # The tail's share of the mass, after an increase of the tail's mass by 0.15 (alpha). The division among the buckets
    # does not matter.
    assert exact == pytest.approx(100 * share * 1.15 / (100 + 0.15 * share), abs=0.1)

    ends = {
        (arm, seed): validation(results / f"study/extension/{arm}/start-0-seed-{seed}", "ema")
        for arm in ("standard", "exact")
        for seed in (0, 1)
    }
    differences = [
        ends["exact", seed]["tail"]["cross_entropy"] - ends["standard", seed]["tail"]["cross_entropy"]
        for seed in (0, 1)
    ]
    row = re.search(r"^exact +2 +\S+ +\S+ +(\S+) +(\S+) to (\S+) ", output, re.MULTILINE)
    assert row, output
    difference, low, high = map(float, row.groups())
    digits = len(row[1].partition(".")[2])
    assert difference == pytest.approx(sum(differences) / 2, abs=10.0**-digits)
    assert low <= difference <= high
    for outcome in ("tail", "below the tail", "far facts"):
        assert re.search(rf"^{outcome}( \(primary\))? +\d\.\d{{4}} +[+-]\d\.\d+ ±\d\.\d+$", output, re.MULTILINE), (
            outcome
        )
    # The evaluation is the last line of the table: the gain from the context beyond the short windows.
    last = output.split("all outcomes")[1].split("\n\n")[0].splitlines()[-1]
    gain = re.fullmatch(r"context gain +(-?\d\.\d{4}) +[+-]\d\.\d+ ±\d\.\d+", last)
    assert gain, last
    assert float(gain[1]) == pytest.approx(
        sum(ends["standard", seed]["context_gain"]["128"]["gain"] for seed in (0, 1)) / 2, abs=1e-4
    )
    for name in ("exposure.png", "study/report/training.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    assert (results / "study/report/report.html").is_file()

    begin = time.monotonic()
    again = quickstart(tmp_path)
    assert time.monotonic() - begin < 120
    assert "Planting" not in again
    assert "all 5 runs are finished: nothing to train" in again
    tables = [text.split("== Differences")[1].split("== Done")[0].splitlines()[1:] for text in (output, again)]
    assert tables[0] == tables[1]
