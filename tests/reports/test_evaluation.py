"""The report of an evaluation: its numbers, files, notes and messages."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.evaluation.scores import Score
from exact_titan.reports import evaluation_sections
from exact_titan.reports.evaluation import write_report
from exact_titan.reports.evaluation_comparison import Comparison
from exact_titan.reports.evaluation_figures import margin_map_figure
from exact_titan.reports.evaluation_lengths import find_lengths
from exact_titan.reports.evaluation_results import Results, results_of
from exact_titan.reports.evaluation_scores import SharedCells, read_models, shared_cells
from tests.reports.synthetic_evaluation import (
    ACCURACY,
    CROSS_ENTROPY,
    QA_TASKS,
    recipe,
    write_evaluation,
    write_model,
    write_probe,
    write_set,
    write_suite,
)


def right(task: str, length: int | None) -> float:
    return 0.5


def shared(*folders: Path) -> SharedCells:
    return shared_cells(read_models(folders))


def results(*folders: Path) -> Results:
    return results_of(shared(*folders), lambda: find_lengths("m", 4096, (), ()))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    write_evaluation(out, {"standard": 0.0, "exact": 0.15})
    return out


@pytest.fixture(scope="module")
def printed(out: Path) -> str:
    return write_report([out / "models/standard", out / "models/exact"], paper=True)


def test_the_report_has_its_files_and_its_pictures_inside(out, printed):
    assert {one.name for one in (out / "report").iterdir()} == {"report.md", "report.html", *evaluation_sections.FILES}
    page = (out / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert printed.splitlines()[0] == "evaluation: exact against standard"
    assert printed.splitlines()[-1] == f"report: {out / 'report/report.html'}"
    for text in (
        "conditional on these checkpoints and prompts",
        "rule is ours",
        "The haystack is the package",
        "float32",
    ):
        assert text in page
    assert "macro of 6 tasks" in printed
    assert "+17.91" in printed
    assert "not in the file: Table 3, 5, 6" in printed


def test_every_number_of_the_report_is_in_the_csv(out, printed):
    rows = list(csv.DictReader((out / "report/estimates.csv").open()))
    assert {row["scope"] for row in rows} == {"macro", "length", "task", "cell", "distance"}
    markdown = (out / "report/report.md").read_text()
    macro = next(row for row in rows if row["scope"] == "macro" and row["suite"] == "ruler" and row["difference"])
    shown = "[" + ", ".join(f"{100 * float(macro[name]):+.1f}" for name in ("difference_low", "difference_high")) + "]"
    assert shown in markdown
    lifts = list(csv.DictReader((out / "report/lift.csv").open()))
    values = {
        (row["model"], row["lengths"]): float(row["value"])
        for row in rows
        if row["scope"] == "length" and (row["suite"], row["metric"]) == ("ruler", "accuracy")
    }
    for row in lifts:
        if row["suite"] == "ruler":
            ratio = values["exact", row["length"]] / values["standard", row["length"]]
            assert float(row["lift"]) == pytest.approx(ratio - 1)
            assert float(row["low"]) < float(row["lift"]) < float(row["high"])


def test_the_macro_change_is_the_last_row_of_its_metric(out, printed):
    section = (out / "report/report.md").read_text().split("## Preservation: qa")[1].split("## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows] == 2 * [*QA_TASKS, "macro of 6 tasks"]
    assert [row[1].strip() for row in rows] == 7 * ["accuracy, %"] + 7 * ["cross-entropy, nats/token"]


def test_the_same_scores_give_the_same_files(tmp_path):
    folder = write_model(tmp_path / "models/a")
    write_suite(folder, "ruler", ("x",), [1024], right)
    for name in ("one", "two"):
        write_report([folder], tmp_path / name)
    assert len(list((tmp_path / "one").iterdir())) == 4
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_macro_average_is_over_tasks_and_then_over_lengths(tmp_path):
    """Two tasks at 1024 and one task at 2048: the weights are 1/4, 1/4 and 1/2, whatever the numbers of questions."""
    folders = [write_model(tmp_path / name) for name in ("a", "b")]
    means = {(1024, "x"): (0.0, 0.5), (1024, "y"): (1.0, 1.0), (2048, "x"): (0.5, 1.0)}
    for place, folder in enumerate(folders):
        for length in (1024, 2048):
            made = recipe("ruler", ("x", "y"), length, 8)
            scores = [
                Score(
                    f"{task}/{length}/{k}",
                    task,
                    length,
                    None,
                    None,
                    {"accuracy": float(k < 8 * means[at, task][place])},
                )
                for at, task in means
                if at == length
                for k in range(8 if task == "x" else 4)
            ]
            write_set(folder, made, (ACCURACY, CROSS_ENTROPY), scores)
    found = results(*folders)
    macro = next(one for one in found.long if one.scope == "macro")
    assert (macro.regime, macro.lengths, macro.tasks) == ("trained", (1024, 2048), ("x", "y"))
    assert [one.value for one in macro.own] == [
        0.25 * 0.0 + 0.25 * 1.0 + 0.5 * 0.5,
        0.25 * 0.5 + 0.25 * 1.0 + 0.5 * 1.0,
    ]
    assert macro.difference[1].value == 0.375
    assert macro.difference[1].low < 0.375 < macro.difference[1].high
    assert found.left_out[-2:] == (
        "ruler: no question has cross_entropy.",
        "ruler: no extrapolated length has scores.",
    )


def test_pairing_removes_the_spread_that_the_models_share(out):
    found = results(out / "models/standard", out / "models/exact")
    entropy = next(one for one in found.long if (one.suite, one.metric.name) == ("ruler", "cross_entropy"))
    own, difference = entropy.own[1], entropy.difference[1]
    assert difference.high - difference.low < 0.5 * (own.high - own.low)
    assert difference.excludes_zero


def test_one_model_alone_has_intervals_of_its_own(tmp_path):
    folder = write_model(tmp_path / "models/a")
    write_suite(folder, "ruler", ("x",), [4096, 8192], right)
    text = write_report([folder])
    assert text.splitlines()[0] == "evaluation of a"
    assert re.search(r"a \[95 %\]\nruler +1 task +trained +4,096 +accuracy, % +20 +\d+\.\d \[\d", text)
    assert not (tmp_path / "report/lift.png").exists()


def test_a_report_removes_the_pictures_of_an_earlier_report(tmp_path):
    folder = write_model(tmp_path / "models/a")
    write_suite(folder, "qa", ("piqa",), [None], right)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/lift.png").touch()
    write_report([folder])
    assert {one.name for one in (tmp_path / "report").iterdir()} == {"report.md", "report.html", "estimates.csv"}


def test_the_margin_map_shows_the_margin_of_every_distance_and_length(tmp_path):
    folders = [write_model(tmp_path / name) for name in ("a", "b")]
    for place, folder in enumerate(folders):
        write_probe(folder, [512, 1024], lambda distance, length, place=place: distance / 64 + length + 10 * place)
    found = results(*folders)
    assert found.lengths is None  # the probe alone needs no regimes, so any window will do
    assert [(one.lengths, one.distance) for one in found.probe] == [
        *(((512,), distance) for distance in (128, 256)),
        *(((1024,), distance) for distance in (128, 256, 512)),
    ]
    far = found.probe[-1]
    assert far.own[0].value == pytest.approx(512 / 64 + 1024, abs=0.4)
    assert far.difference[1].value == pytest.approx(10, abs=0.5)
    figure = margin_map_figure(found.probe, found.names)
    shown = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert shown[0] == [f"{one.own[0].value:.2f}" for one in found.probe]
    assert shown[2] == [f"{one.difference[1].value:+.2f}" for one in found.probe]


def test_a_baseline_of_zero_has_no_lift(tmp_path):
    folders = [write_model(tmp_path / name) for name in ("a", "b")]
    write_suite(folders[0], "ruler", ("x",), [1024], lambda task, length: 0.0)
    write_suite(folders[1], "ruler", ("x",), [1024], right)
    cells = shared(*folders).cells
    assert Comparison(2).lift(cells, ACCURACY, 1) is None
    found = results(*folders)
    assert [one.lift for one in found.lifts] == [None]


def test_everything_left_out_is_counted_and_named(tmp_path):
    a, b = (write_model(tmp_path / name) for name in ("a", "b"))
    write_suite(a, "ruler", ("x", "y"), [1024, 2048], right, examples=6)
    write_suite(b, "ruler", ("x",), [1024], right, examples=4)
    write_suite(b, "qa", ("piqa",), [None], right)
    write_set(
        b,
        recipe("ruler", ("x",), 1024, 2),
        (ACCURACY, CROSS_ENTROPY),
        [Score("ruler/x/1024/0", "x", 1024, None, None, {"accuracy": 1.0})],
        missing=3,
    )
    found = shared(a, b)
    assert [(cell.key, cell.ids) for cell in found.cells] == [
        (("ruler", "x", 1024), tuple(f"ruler/x/1024/{k}" for k in range(4)))
    ]
    notes = "\n".join(found.left_out)
    assert "a: 3 cells of ruler that another model does not have: ruler/y at 1024, ruler/x at 2048, ruler/y" in notes
    assert "b: 1 cells of qa that another model does not have: qa/piqa." in notes
    assert "ruler/x at 1024: 4 questions that all models have (a 6, b 4)." in notes
    assert re.search(r"b: ruler-1024-\w+.jsonl is left out for ruler-1024-\w+.jsonl, which has more examples", notes)
    assert re.search(r"b: 3 examples of ruler-1024-\w+.jsonl have no answer", notes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"template": "chat"}, r"template: plain / chat"),
        ({"seed": 1}, r"seed: 0 / 1"),
        ({"settings": {"haystack": "0" * 64}}, r"settings.haystack: f{12}… / 0{12}…"),
        ({"tokenizer_sha256": "b" * 64}, r"tokenizer_sha256: a{12}… / b{12}…"),
    ],
)
def test_models_with_other_prompts_are_refused(tmp_path, changed, said):
    a, b = (write_model(tmp_path / name) for name in ("a", "b"))
    write_suite(a, "ruler", ("x",), [1024], right)
    write_suite(b, "ruler", ("x",), [1024], right, **changed)
    with pytest.raises(InputError, match=rf"scores of other prompts in ruler/x at 1024 \({said}\)"):
        shared(a, b)
    write_suite(a, "ruler", ("x",), [1024], right, **changed)
    with pytest.raises(InputError, match=r"two prompt sets for ruler/x at 1024, which differ in .*: move ruler-1024-"):
        shared(a)


def test_unlike_engines_and_equal_weights_are_named(tmp_path):
    a, b = (write_model(tmp_path / name, weights="c" * 64) for name in ("a", "b"))
    write_suite(a, "ruler", ("x",), [1024], right)
    engine = {"name": "transformers", "version": "5.0", "dtype": "bfloat16", "rope": {"factor": 4}}
    write_suite(b, "ruler", ("x",), [1024], right, engine=engine)
    assert shared(a, b).unlike == (
        "The engines differ in dtype: float32 / bfloat16 (a / b).",
        "The engines differ in rope.factor: None / 4 (a / b).",
        "a has the same weights as another model: cccccccccccc.",
        "b has the same weights as another model: cccccccccccc.",
    )
    assert next(iter(evaluation_sections.warnings(results(a, b)))).startswith("NOT ALIKE: The engines differ in dtype")


def test_wrong_input_is_one_line_with_exit_code_2(tmp_path, capsys):
    a = write_model(tmp_path / "models/a", window=2048)

    def said(*arguments: str | Path) -> str:
        assert main(["eval", "report", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "has no model.json" in said(tmp_path / "nothing")
    assert f"has no scores: make them with `exact-titan eval score {a}`" in said(a)
    write_suite(a, "ruler", ("x",), [1024], right)
    assert "the paper has no lengths for a window of 2048 tokens (a)" in said(a)
    assert "is named twice" in said(a, a)
    b = write_model(tmp_path / "models/b", window=4096)
    write_suite(b, "ruler", ("x",), [1024], right)
    assert "a has a window of 2048 tokens, and b has 4096" in said(a, b)
    write_suite(c := write_model(tmp_path / "models/c"), "qa", ("piqa",), [None], right)
    assert "have no question in common" in said(b, c)
    (tmp_path / "file").touch()
    assert "cannot be written" in said(a, "--trained", "1024", "--out", tmp_path / "file")
    assert not (tmp_path / "report").exists()


def test_a_model_with_an_unknown_window_has_the_window_of_the_others(tmp_path):
    a, b = write_model(tmp_path / "models/a", window=None), write_model(tmp_path / "models/b")
    for folder in (a, b):
        write_suite(folder, "ruler", ("x",), [4096], right)
    write_report([a, b])
    assert "Lengths up to the window of 4096 tokens" in (tmp_path / "report/report.md").read_text()


def test_questions_without_a_metric_are_counted(tmp_path):
    """A task of another kind has no accuracy at all; a question without a likelihood is missing."""
    folder = write_model(tmp_path / "a")
    scores = [Score(f"x{k}", "x", 1024, None, None, {"accuracy": 1.0, "cross_entropy": 2.0}) for k in range(4)]
    scores += [Score(f"y{k}", "y", 1024, None, None, {"cross_entropy": 1.0} if k else {}) for k in range(4)]
    write_set(folder, recipe("ruler", ("x", "y"), 1024, 4), (ACCURACY, CROSS_ENTROPY), scores)
    found = results(folder)
    assert [one for one in found.left_out if "questions" in one] == [
        "ruler: 1 questions do not have cross_entropy in all models."
    ]
    macro = {one.metric.name: one for one in found.long if one.scope == "macro"}
    assert (macro["accuracy"].tasks, macro["cross_entropy"].tasks) == (("x",), ("x", "y"))
    assert macro["cross_entropy"].own[0].value == 1.5


def test_questions_about_one_context_are_one_unit(tmp_path):
    folder = write_model(tmp_path / "a")
    values = np.random.default_rng(0).random(12)
    for name, unit in (("alone", ""), ("together", "c")):
        scores = [
            Score(f"{k}", "x", 1024, None, None, {"cross_entropy": float(values[k // 4])}, unit and f"{unit}{k // 4}")
            for k in range(48)
        ]
        write_set(folder, recipe(name, ("x",), 1024, 48), (CROSS_ENTROPY,), scores)
    widths = {one.suite: one.own[0].high - one.own[0].low for one in results(folder).long if one.scope == "cell"}
    assert widths["together"] == pytest.approx(2 * widths["alone"], rel=0.25)


def test_distances_are_grouped_by_the_nearest_power_of_two(tmp_path):
    folder = write_model(tmp_path / "a")
    scores = [
        Score(f"{k}", "x", 1024, None, distance, {"accuracy": 1.0}) for k, distance in enumerate((None, 126, 131, 500))
    ]
    write_set(folder, recipe("ruler", ("x",), 1024, 4), (ACCURACY,), scores)
    (cell,) = shared(folder).cells
    parts = cell.by_distance()
    assert {distance: part.ids for distance, part in parts.items()} == {128: ("1", "2"), 512: ("3",)}
    assert np.array_equal(parts[512].values["accuracy"], [[1.0]])


def change_header(folder: Path, **values: object) -> None:
    file = next((folder / "scores").glob("ruler-*.jsonl"))
    header, *lines = file.read_text().splitlines()
    changed = json.loads(header)["header"] | values
    file.write_text("\n".join([json.dumps({"header": changed}), *lines]) + "\n")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"recipe": None}, "key 'recipe' is None: it must be an object"),
        ({"missing": "3"}, "key 'missing' is '3': it must be an integer"),
        ({"metrics": [3]}, r"key 'metrics\[0\]' is 3: it must be an object"),
        ({"metrics": []}, "the scores of ruler have other metrics"),
        ({"recipe": {"suite": ["ruler"]}}, r"key 'suite' is \['ruler'\]: it must be a string"),
    ],
)
def test_scores_of_somebody_else_are_checked(tmp_path, values, reason):
    (folder,) = write_evaluation(tmp_path, {"a": 0.0}, examples=2)
    change_header(folder, **values)
    with pytest.raises(InputError, match=reason):
        shared(folder)
