import re

import pytest

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.planning import report
from exact_titan.planning.run import plan_run
from tests.support import ROOT


def plan(*options: str, nproc: int = 8):
    sizes = ["--training.seq_len", "512", "--architecture.vocab_size", "4000", "--architecture.n_layers", "2"]
    return plan_run(load_config(["--config", "from_scratch", *sizes, *options]), nproc=nproc)


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("141GB", 141 * 10**9), ("1.5 GiB", 3 * 2**29), ("512MiB", 2**29)]
)
def test_sizes(text, size):
    assert report.parse_memory(text) == size


@pytest.mark.parametrize("text", ["80", "GiB", "80 potatoes", "-1GiB", "0GB", ""])
def test_a_text_that_is_not_a_size_is_refused(text):
    with pytest.raises(InputError, match="--memory"):
        report.parse_memory(text)


def test_the_table_adds_up():
    planned = plan()
    text = report.table(planned, memory=2**34, peak_flops=1e12, mfu=0.5)
    peak = planned.memory.peak
    assert sum(peak.by_kind.values()) == peak.bytes
    assert set(peak.by_kind) <= set(report._LABELS)
    for part in ("512 tokens", "logits of a loss chunk (64 x 4,000)", "needed", "16.00", "GPU hours", "assumed"):
        assert part in text
    assert report.ACCURACY in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_accuracy_is_that_of_the_benchmarks_page():
    page = " ".join((ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").split())
    assert "H200" in report.ACCURACY
    assert re.findall(r"within ([\d.]+ %)", report.ACCURACY) == ["0.1 %", "0.03 %", "3 %"]
    for figure in ("0.1 %", "0.03 %", "3 %"):
        assert f"within {figure}" in page


@pytest.mark.parametrize("options", [["--compile.enable"], []], ids=["compiled", "eager"])
def test_the_table_says_what_compiled_steps_need_as_measured(options):
    text = report.table(plan(*options), memory=None, peak_flops=1e12, mfu=0.5)
    assert f"planned for eager steps; compiled steps, the default on CUDA, need {report.COMPILED_PEAK}" in text
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert f"compiled step is {report.COMPILED_PEAK} of the eager peak" in page


def test_a_run_that_fits_has_no_shortfall():
    planned = plan()
    assert report.shortfall(planned, report.needed(planned)) is None


def test_a_shortfall_names_only_options_that_help():
    planned = plan("--training.local_batch_size", "2", "--parallelism.data_parallel_replicate_degree", "2")
    line = report.shortfall(planned, report.needed(planned) - 2**30)
    assert line is not None
    assert "1.0 GiB" in line
    assert "\n" not in line
    for part in ("activation-checkpoint:full", "local_batch_size below 2", "replicate_degree", "--nproc above 8"):
        assert part in line
    full = report.shortfall(plan("activation-checkpoint:full"), 2**20)
    assert full is not None
    assert "checkpoint" not in full
    assert "local_batch_size" not in full
