"""The report of a study: its numbers, files, sentences and messages."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.reports.figures import HATCHES
from exact_titan.reports.pages import Heading, Page, Picture, Table, Text, html_page, markdown, write_page
from exact_titan.reports.study_figures import bucket_differences_figure, dose_figure, loss_mass_figure, training_figure
from exact_titan.reports.study_sections import warnings
from exact_titan.reports.study_tables import multiplicity, primary_table, sentences
from exact_titan.study.comparisons import Comparison, read_pairs
from exact_titan.study.results import read_results
from exact_titan.study.spec import Outcome
from exact_titan.study.statistics import paired_test
from exact_titan.study.weighting import doses, loss_masses
from tests.study.synthetic import OUTCOMES, make_study, pack_facts, write_study

ARMS = {
    "standard": {},
    "exact-0.5": {"rule": "exact", "alpha": 0.5},
    "exact-1.0": {"rule": "exact", "alpha": 1.0},
}
EFFECTS = {"standard": 0.0, "exact-0.5": -0.004, "exact-1.0": 0.0}
STUDY = make_study(ARMS, seeds=range(6), outcomes=(OUTCOMES[0], OUTCOMES[2], OUTCOMES[4]))
FILES = {
    *("report.md", "report.html", "loss_mass.png", "buckets.png", "training.png", "dose.png", "comparisons.csv"),
    *("pairs.csv", "loss_mass.csv", "buckets.csv", "dose.csv", "checkpoints.csv"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_facts(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("study") / "study"
    write_study(out, dataset, STUDY, effects=EFFECTS, unfinished=[("exact-1.0", 0, 5)])
    proof = {
        "format": 1,
        "faults": [],
        "notes": [],
        "differences": {"extension": {"exact-0.5": {"loss.alpha": [0.15, 0.5]}}},
        "starts": [],
        "windows": [{"name": "extension, start 0", "runs": 3, "steps": 9, "windows_per_step": 4, "sha256": "f" * 64}],
        "runs": [{}] * 17,
    }
    (out / "proof.json").write_text(json.dumps(proof))
    return out


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """Make the report by the command. Return the output of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exact_titan.study.checkpoint_difference.DRAWS", 100)
        out: list[str] = []
        patch.setattr("builtins.print", lambda *text: out.append(" ".join(map(str, text))))
        assert main(["study", "report", str(folder)]) == 0
    return "\n".join(out)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_command_prints_the_primary_table_and_the_path(folder, printed):
    title, header, *rows = printed.splitlines()
    assert title == "study toy: arms against standard, primary outcome far facts, step 40, EMA of the weights"
    assert re.split(r"\s\s+", header) == [
        *("arm", "n", "baseline", "arm", "difference", "95 % interval"),
        *("p (t)", "p (Holm)", "p (sign flip)", "detectable", "n needed"),
    ]
    assert [row.split()[:2] for row in rows[:2]] == [["exact-0.5", "6"], ["exact-1.0", "5"]]
    assert rows[-2].endswith("Runs that are not finished: extension, arm exact-1.0, start 0, seed 5.")
    assert rows[-1] == f"report: {folder}/report/report.html"
    assert {file.name for file in (folder / "report").iterdir()} == FILES


def test_the_command_prints_the_difference_of_every_outcome_with_its_interval(folder, printed):
    lines = printed.splitlines()
    header = next(k for k, line in enumerate(lines) if line.startswith("outcome "))
    assert re.split(r"\s\s+", lines[header]) == [
        *("outcome", "standard", "exact-0.5 - standard", "exact-1.0 - standard"),
    ]
    expected = {
        (row["name"], row["arm"]): (float(row["difference"]), float(row["half_width"]))
        for row in rows_of(folder / "report/comparisons.csv")
        if (row["step"], row["weights"], row["start"]) == ("40", "ema", "all")
    }
    table = [re.split(r"\s\s+", line) for line in lines[header + 1 : lines.index("", header)]]
    assert table[0][0] == "far facts (primary)"
    assert {row[0].removesuffix(" (primary)") for row in table} == {name for name, _ in expected}
    for name, _, *cells in table:
        for arm, cell in zip(("exact-0.5", "exact-1.0"), cells, strict=True):
            last_digit = 10.0 ** -len(cell.rpartition(".")[2])
            found = [float(number) for number in cell.split(" ±")]
            assert found == pytest.approx(expected[name.removesuffix(" (primary)"), arm], abs=0.51 * last_digit, rel=0)


def test_the_numbers_of_the_primary_table_are_those_of_scipy(folder, printed):
    pairs = rows_of(folder / "report/pairs.csv")
    values = [
        float(row["difference"])
        for row in pairs
        if (row["name"], row["step"], row["weights"], row["arm"]) == ("far facts", "40", "ema", "exact-0.5")
    ]
    assert len(values) == 6
    reference = stats.ttest_1samp(values, 0)
    low, high = reference.confidence_interval(0.95)
    flips = stats.permutation_test((np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf)
    found = next(
        row
        for row in rows_of(folder / "report/comparisons.csv")
        if (row["name"], row["step"], row["weights"], row["arm"]) == ("far facts", "40", "ema", "exact-0.5")
    )
    assert found["primary"] == "True"
    assert float(found["difference"]) == pytest.approx(np.mean(values))
    assert float(found["half_width"]) == pytest.approx((high - low) / 2)
    assert float(found["p_t"]) == pytest.approx(reference.pvalue)
    assert float(found["p_sign_flip"]) == pytest.approx(flips.pvalue)
    line = next(line for line in printed.splitlines() if line.startswith("exact-0.5"))
    assert f"{np.mean(values):+.5f}" in line
    assert f"{low:+.5f} to {high:+.5f}" in line


def test_the_page_has_every_part_in_its_order(folder, printed):
    text = (folder / "report/report.md").read_text()
    parts = [
        "# Study toy",
        "The study is not finished.",
        "Primary outcome, fixed before the runs: far facts. Cross-entropy of the asked facts that lie 16 or more",
        "## What is paired",
        "extension, start 0: 3 runs on the same 9 steps of 4 windows",
        "## Is the rule better? Primary outcome: far facts",
        "exact-0.5: the 95 % interval of the difference in far facts",
        "excludes 0: exact-0.5 is better than the baseline. Smallest effect that 6 pairs find with 80 % power:",
        "exact-1.0: the 95 % interval",
        "does not exclude 0. Smallest effect that 5 pairs find with 80 % power:",
        "Only the primary outcome at the final validation is tested: 2 tests",
        "## All outcomes",
        "### Step 40, EMA of the weights",
        "| arm | far facts (primary) | tail | context gain |",
        "### Step 40, last weights",
        *("![", "(loss_mass.png)", "(buckets.png)", "(training.png)", "(dose.png)"),
        "## All numbers (descriptive)",
        *("### Step 40, EMA of the weights", "### Step 40, last weights"),
        *("### Step 20, EMA of the weights", "### Step 20, last weights"),
        "## Do these two checkpoints differ? Conditional on these runs",
        "| exact-0.5 | 0 | 0 |",
    ]
    place = 0
    for part in parts:
        assert part in text[place:], part
        place = text.index(part, place) + 1
    assert str(folder) not in text
    page = (folder / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_same_results_give_the_same_files(folder, printed, tmp_path, monkeypatch):
    monkeypatch.setattr("exact_titan.study.checkpoint_difference.DRAWS", 100)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "report/notes.txt").write_text("a note of the user")
    shutil.copy(copy / "report/dose.png", copy / "report/dose.csv")
    assert main(["study", "report", str(copy)]) == 0
    for name in FILES:
        assert (copy / "report" / name).read_bytes() == (folder / "report" / name).read_bytes(), name
    assert (copy / "report/notes.txt").is_file()


def test_every_number_of_the_figures_is_in_a_csv(folder, printed):
    pairs = read_pairs(read_results(folder))
    step, weights = pairs.final_step, pairs.weights[0]
    found = [pairs.compare_bucket(label, arm, step, weights) for label in pairs.buckets(step) for arm in pairs.arms]
    axes = bucket_differences_figure(pairs, found).axes[0]
    rows = rows_of(folder / "report/buckets.csv")
    for container, arm in zip(axes.containers, pairs.arms, strict=True):
        points, _, (bars,) = container.lines
        of_arm = [row for row in rows if row["arm"] == arm]
        assert points.get_ydata() == pytest.approx([float(row["difference"]) for row in of_arm])
        lengths = [abs(segment[1][1] - segment[0][1]) for segment in bars.get_segments()]
        assert lengths == pytest.approx([2 * float(row["half_width"]) for row in of_arm])
    masses = loss_masses(pairs)
    bars = loss_mass_figure(masses, pairs.threshold).axes[0].containers
    heights = [bar.get_height() for container in bars for bar in container]
    assert heights == pytest.approx([float(row["percent"]) for row in rows_of(folder / "report/loss_mass.csv")])
    at_end = [pairs.compare(outcome, arm, step, weights) for outcome in pairs.outcomes for arm in pairs.arms]
    dose = dose_figure(pairs, doses(pairs), at_end)
    assert [axes.get_title() for axes in dose.axes][:2] == ["far facts (primary)", "tail"]
    assert dose.axes[0].containers[0].lines[0].get_xdata() == pytest.approx([0, 0.5, 1])
    dosed = [row for row in rows_of(folder / "report/dose.csv") if row["name"] == "far facts"]
    expected = [0, *(float(row["difference"]) for row in dosed)]
    assert dose.axes[0].containers[0].lines[0].get_ydata() == pytest.approx(expected)


def test_the_arms_differ_without_colors(folder):
    pairs = read_pairs(read_results(folder))
    bars = loss_mass_figure(loss_masses(pairs), pairs.threshold).axes[0].containers
    hatches = [container[0].get_hatch() or "" for container in bars]
    assert hatches == list(HATCHES[: len(bars)])
    assert len(set(HATCHES)) == len(HATCHES)
    comparisons = [
        pairs.compare(Outcome("tail", "tail"), arm, step, "ema") for step in pairs.steps("ema") for arm in pairs.arms
    ]
    lines = [one.lines[0] for one in training_figure(pairs, comparisons, "ema").axes[0].containers]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2


def comparison(values: list[float], arm: str = "exact") -> Comparison:
    keys = [(0, seed) for seed in range(len(values))]
    differences = dict(zip(keys, values, strict=True))
    mean = float(np.mean(values))
    return Comparison("tail", arm, 1, "last", None, 3.0, 3.0 + mean, 9, differences, keys, paired_test(values))


def test_sentences_say_what_the_numbers_say():
    tail, gain = Outcome("tail", "tail"), Outcome("tail", "context_gain", piece=8)
    (better,) = sentences([comparison([-0.02, -0.021, -0.019])], tail)
    assert "-0.0225 to -0.0175 nats, excludes 0: exact is better than the baseline" in better
    assert "Smallest effect that 3 pairs find with 80 % power: 0.0033 nats." in better
    assert "worse" in sentences([comparison([0.02, 0.021, 0.019])], tail)[0]
    assert "better" in sentences([comparison([0.02, 0.021, 0.019])], gain)[0]
    (unclear,) = sentences([comparison([-0.02, 0.021, -0.019])], tail)
    assert "does not exclude 0" in unclear
    assert re.search(r"An effect of the observed size needs \d+ pairs\.$", unclear)
    (one_pair,) = sentences([comparison([-0.02])], tail)
    assert "one pair gives no interval" in one_pair
    (diverged,) = sentences([comparison([float("nan"), 0.1])], tail)
    assert "not a finite number" in diverged
    # The interval of the first arm excludes 0 (p 0.03). Holm's correction for three arms gives 0.09.
    marginal = [comparison([-0.02, -0.013, -0.028, 0.0001, -0.019]), *(comparison([0.1, -0.1], arm) for arm in "bc")]
    assert 0.02 < marginal[0].test.p < 0.05
    assert "excludes 0, but not after Holm's correction" in sentences(marginal, tail)[0]
    table = primary_table(marginal)
    p, adjusted = (float(table.rows[0][table.header.index(name)]) for name in ("p (t)", "p (Holm)"))
    assert adjusted == pytest.approx(3 * p, rel=0.05)


def test_only_one_arm_needs_no_correction(folder):
    pairs = read_pairs(read_results(folder))
    alone = replace(pairs, runs={"exact-0.5": pairs.runs["exact-0.5"]})
    assert "is tested: one test, at the level 0.05" in multiplicity(alone)


def test_several_starts_have_their_own_table(tmp_path, dataset, capsys):
    arms = {"standard": {}, "exact": {"rule": "exact"}}
    two_starts = make_study(arms, starts=(0, 1), primary="tail", outcomes=(Outcome("tail", "tail"),))
    # A run without a moving average and without target files.
    effects = {"standard": 0.0, "exact": -0.01}
    write_study(tmp_path / "study", dataset, two_starts, effects=effects, weights=("last",), keep=1)
    for file in (tmp_path / "study").glob("extension/*/*/validation/*"):
        file.unlink()
    assert main(["study", "report", str(tmp_path / "study")]) == 0
    out = capsys.readouterr().out
    assert "step 40, last weights" in out
    assert "Smallest effect that 3 seeds find" in out
    text = (tmp_path / "study/report/report.md").read_text()
    assert "proof.json is missing" in text
    assert "The independent values are therefore the seeds" in text
    assert "The runs have not kept the target files" in text
    starts = text[text.index("### The primary outcome for each start") :]
    assert [line.split("|")[1].strip() for line in starts.splitlines()[4:6]] == ["0", "1"]
    # One alpha is no dose curve.
    assert not (tmp_path / "study/report/dose.png").exists()


def test_faults_of_the_proof_are_warnings(tmp_path, folder):
    pairs = read_pairs(read_results(folder))
    (unfinished,) = warnings(pairs, folder)
    assert "Runs that are not finished" in unfinished
    assert next(iter(warnings(pairs, tmp_path))).startswith("proof.json is missing")
    (tmp_path / "proof.json").write_text(json.dumps({"format": 1, "faults": ["exact-0.5: the batch is 8"]}))
    assert next(iter(warnings(pairs, tmp_path))).startswith("NOT PAIRED")
    (tmp_path / "proof.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        list(warnings(pairs, tmp_path))
    (tmp_path / "proof.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="has the format 2, not 1"):
        list(warnings(pairs, tmp_path))


def test_mistakes_are_one_line(tmp_path, dataset, capsys):
    def error(folder: Path) -> str:
        assert main(["study", "report", str(folder)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "has no study.json" in error(tmp_path)
    unfinished = [("exact", 0, 0), ("standard", 0, 1)]
    arms = make_study({"standard": {}, "exact": {"rule": "exact"}}, seeds=(0, 1))
    effects = {"standard": 0.0, "exact": -0.01}
    write_study(tmp_path / "half", dataset, arms, effects=effects, unfinished=unfinished)
    assert "no pair of runs is finished (2 of 4 runs are)" in error(tmp_path / "half")
    write_study(tmp_path / "lost", dataset, arms, effects=effects)
    next((tmp_path / "lost").glob("extension/exact/*/validation/step-40-ema*")).unlink()
    assert "the primary outcome 'far facts' has no value in step 40" in error(tmp_path / "lost")


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(InputError, match="report cannot be written"):
        write_page(Page([Heading("Study", 1)]), tmp_path / "report", set())


def test_pages_escape_their_text():
    blocks = [
        Heading("a < b", 1),
        Text("run `a & b` at 80 % power"),
        Table(["name", "x|y"], [["<b>", "1\n2"]]),
        Picture("p.png", "a & b"),
    ]
    page = html_page(blocks, {"p.png": b"png"})
    assert "<h1>a &lt; b</h1>" in page
    assert "run <code>a &amp; b</code> at 80\u00a0% power" in page
    assert '<td class="label">&lt;b&gt;</td><td>1\n2</td>' in page
    assert 'src="data:image/png;base64,cG5n" alt="a &amp; b"' in page
    assert "| \\<b> | 1<br>2 |" in markdown(blocks)
    assert "| name | x\\|y |" in markdown(blocks)
    empty = Page()
    empty.add_csv("none.csv", [])
    assert empty.tables["none.csv"].strip() == ""
