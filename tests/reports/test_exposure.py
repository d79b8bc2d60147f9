import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exact_titan.cli import main
from exact_titan.dataset import PackedDataset
from exact_titan.errors import InputError
from exact_titan.reports.exposure import ExposureReport
from exact_titan.reports.figures import save_png
from exact_titan.sampling.mixture import Mixture
from tests.exposure.naive_rules import bucket_of, contexts, naive_weights
from tests.support import pack_lengths

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
    report = ExposureReport(COUNTS, window=64, threshold=16)
    assert report.mass_percent("standard").sum() == pytest.approx(100)
    assert report.mass_percent("exact").sum() == pytest.approx(100)


def test_rules_side_by_side() -> None:
    rules = ("standard", "exact", "uniform", "random")
    lines = ExposureReport(COUNTS, window=64, threshold=16, rules=rules).table().splitlines()
    assert lines[0] == "mean weight of a target"
    assert [line.split() for line in lines[1:7]] == [
        ["context", "targets", "share", "%", "exact", "uniform", "random"],
        ["0-7", "400", "40.00", "1.0000", "1.0000", "1.0600"],
        ["8-15", "200", "20.00", "1.0000", "1.0000", "1.0600"],
        ["16-31", "300", "30.00", "1.1268", "1.1500", "1.0600"],
        ["32-64", "100", "10.00", "1.2196", "1.1500", "1.0600"],
        ["total", "1,000", "100.00", "1.0600", "1.0600", "1.0600"],
    ]
    assert lines[8] == "loss mass, %"
    assert lines[9].split()[-4:] == list(rules)
    # Under random the mass of every bucket is its share of the targets.
    assert [line.split()[-1] for line in lines[10:15]] == ["40.00", "20.00", "30.00", "10.00", "100.00"]
    assert lines[15].endswith("loss mass standard 40.0 %, exact 43.4 %, uniform 43.4 %, random 40.0 %")
    assert lines[16].startswith("random: a drawn bucket decides the weight of a target; ")


def test_packed_positions_come_from_the_segments_of_the_dataset(tmp_path: Path) -> None:
    """The windows have padding. The reference counts every target of every window."""
    dataset = pack_lengths(tmp_path, [60, 70, 40, 30, 8], seq_len=64)
    report = ExposureReport.of(
        dataset.folder, dataset.manifest, "train", threshold=16, rules=["standard", "packed_position", "exact"]
    )
    assert dataset.record.padding > 0
    windows = [dataset[k] for k in range(len(dataset))]
    lengths = [window["cu_seqlens"].diff().tolist() for window in windows]
    segments = [
        length if window["labels"][-1] != -100 else length[:-1] for length, window in zip(lengths, windows, strict=True)
    ]
    bounds = dataset.buckets.lower_bounds.tolist()
    weights = naive_weights("packed_position", segments, segments, bounds, threshold=16)
    mass = [0.0] * len(bounds)
    for window, row in zip(segments, weights, strict=True):
        for context, weight in zip(contexts(window), row, strict=True):
            mass[bucket_of(context, bounds)] += weight
    expected = [100 * one / sum(mass) for one in mass]
    assert report.mass_percent("packed_position").tolist() == pytest.approx(expected, rel=1e-6)
    # The same mass as exact, in other buckets.
    means = [report.table().splitlines()[1 + len(bounds) + 1].split()[-2:]]
    assert means[0][0] == means[0][1]
    assert report.tail_mass_percent("packed_position") < report.tail_mass_percent("exact")


def test_unknown_rules_are_refused(dataset: PackedDataset) -> None:
    with pytest.raises(InputError, match=r"^--rules has 'rndom': choose from standard, .*; did you mean random\?$"):
        ExposureReport.of(dataset.folder, dataset.manifest, "train", threshold=16, rules=["exact", "rndom"])


def test_a_dataset_with_other_segments_than_its_manifest_is_refused(tmp_path: Path) -> None:
    dataset = pack_lengths(tmp_path, [60, 70, 40], seq_len=64)
    counts = [1 + count for count in dataset.record.bucket_counts]
    record = replace(dataset.record, bucket_counts=counts)
    manifest = replace(dataset.manifest, splits={"train": record})
    with pytest.raises(InputError, match=f"the segments of {dataset.folder} are not .*exact-titan verify"):
        PackedDataset(dataset.folder, manifest=manifest).joint_counts()


@pytest.mark.parametrize("threshold", [-1, 33])
def test_a_threshold_without_a_tail(threshold: int) -> None:
    with pytest.raises(InputError, match=f"--threshold is {threshold}: .* between 0 and 32"):
        ExposureReport(COUNTS, window=64, threshold=threshold)


def test_figure(tmp_path: Path) -> None:
    report = ExposureReport(COUNTS, window=64, threshold=16)
    figure = report.figure("four buckets")
    standard, exact = report.mass_percent("standard"), report.mass_percent("exact")
    heights = [bar.get_height() for bar in figure.axes[0].patches[1:]]
    assert heights == pytest.approx([*standard.tolist(), *exact.tolist()])
    save_png(figure, tmp_path / "exposure.png")
    assert (tmp_path / "exposure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"--png .* cannot be written: No such file"):
        save_png(figure, tmp_path / "none" / "exposure.png")


@pytest.fixture(scope="module")
def two(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> list[PackedDataset]:
    """A dataset of mixed documents and a small dataset of long documents."""
    return [dataset, pack_lengths(tmp_path_factory.mktemp("other"), [150] * 20, seq_len=64, seed=5)]


@pytest.mark.parametrize("weights", [(3, 1), None])
def test_a_mixture_has_the_counts_of_training(two, weights, capsys) -> None:
    entries = [str(one.folder) for one in two]
    if weights:
        entries = [f"{entry}={weight}" for entry, weight in zip(entries, weights, strict=True)]
    path = ",".join(entries)
    rules = ("standard", "exact", "packed_position")
    assert main(["inspect", path, "--threshold", "16", "--rules", ",".join(rules)]) == 0
    shown = capsys.readouterr().out
    mixture = Mixture(path)
    report = ExposureReport.of_mixture(mixture, threshold=16, rules=rules)
    assert report.counts.tolist() == mixture.counts.tolist()
    assert report.table() in shown
    total = len(two[0]) + len(two[1])
    targets = [one.counts / one.counts.sum() for one in two]
    for number, one in enumerate(two):
        share = weights[number] / 4 if weights else len(one) / total
        tail = 100 * float(targets[number][2:].sum())
        assert re.search(
            rf"^ *{100 * share:.2f} +{len(one):,} +{one.record.documents} +{tail:.1f} .*{one.folder}$", shown, re.M
        )
    if weights:
        # A window of each dataset is nearly full, so the shares of the windows are the shares of the targets.
        expected = (0.75 * targets[0] + 0.25 * targets[1]).tolist()
        assert (report.counts / report.counts.sum()).tolist() == pytest.approx(expected, abs=2e-3)
        # The epochs at the place where the first dataset has no new window.
        assert " 1.00  " in shown


def test_the_policies_of_every_dataset_of_a_mixture(two, capsys) -> None:
    assert main(["inspect", ",".join(f"{one.folder}=1" for one in two), "--compare"]) == 0
    shown = capsys.readouterr().out
    for one in two:
        assert f"policies on the same documents of {one.folder}; this dataset is packed with concat" in shown
