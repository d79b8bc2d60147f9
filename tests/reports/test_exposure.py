from pathlib import Path

import pytest
import torch

from exact_titan.errors import InputError
from exact_titan.reports.exposure import ExposureReport
from exact_titan.reports.figures import save_png

COUNTS = torch.tensor([400, 200, 300, 100])  # [0,7], [8,15], [16,31], [32,64]


def test_table_by_hand() -> None:
    lines = ExposureReport(COUNTS, window=64, threshold=16).table().splitlines()
    assert [line.split()[:4] for line in lines[1:6]] == [
        ["0-7", "400", "40.00", "1.0000"],
        ["8-15", "200", "20.00", "1.0000"],
        ["16-31", "300", "30.00", "1.1268"],
        ["32-64", "100", "10.00", "1.2196"],
        ["total", "1,000", "100.00", "1.0600"],
    ]
    # The tail has 40 % of the targets and a mean weight of 1.15: 46 of 106.
    assert lines[6] == "tail (>= 16): share 40.0 %, loss mass standard 40.0 %, exact 43.4 %"
    assert len({len(line) for line in lines[:6]}) == 1, "columns are aligned"


def test_mass_adds_up() -> None:
    standard, exact = ExposureReport(COUNTS, window=64, threshold=16).mass_percent()
    assert standard.sum() == pytest.approx(100)
    assert exact.sum() == pytest.approx(100)


@pytest.mark.parametrize("threshold", [-1, 33])
def test_a_threshold_without_a_tail(threshold: int) -> None:
    with pytest.raises(InputError, match=f"--threshold is {threshold}: .* between 0 and 32"):
        ExposureReport(COUNTS, window=64, threshold=threshold)


def test_figure(tmp_path: Path) -> None:
    report = ExposureReport(COUNTS, window=64, threshold=16)
    figure = report.figure("four buckets")
    standard, exact = report.mass_percent()
    heights = [bar.get_height() for bar in figure.axes[0].patches[1:]]
    assert heights == pytest.approx([*standard.tolist(), *exact.tolist()])
    save_png(figure, tmp_path / "exposure.png")
    assert (tmp_path / "exposure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"--png .* cannot be written: No such file"):
        save_png(figure, tmp_path / "none" / "exposure.png")
