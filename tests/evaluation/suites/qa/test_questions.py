import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from exact_titan.errors import InputError
from exact_titan.evaluation.suites.qa.questions import Questions, local_folder, local_questions
from exact_titan.evaluation.suites.qa.tasks import TASKS
from tests.evaluation.suites.qa.tiny_questions import write_questions, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


def test_every_layout_gives_the_same_questions(folder: Path, tmp_path: Path) -> None:
    """JSON lines, Parquet, the shards of a hub dataset, and a folder of datasets.save_to_disk."""
    from datasets import Dataset

    task = TASKS["piqa"]
    expected = local_questions(local_folder(folder, task), task, shots=1)
    rows = [json.loads(line) for line in (folder / "piqa/validation.jsonl").read_text().splitlines()]
    shots = [json.loads(line) for line in (folder / "piqa/train.jsonl").read_text().splitlines()]
    (tmp_path / "a/piqa").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a/piqa/validation.parquet")
    write_rows(tmp_path / "a/piqa/train.jsonl", shots)
    (tmp_path / "b/piqa/data").mkdir(parents=True)
    for name, part in (
        ("validation-00000-of-00002", rows[:2]),
        ("validation-00001-of-00002", rows[2:]),
        ("train-0", shots),
    ):
        parquet.write_table(pa.Table.from_pylist(part), tmp_path / f"b/piqa/data/{name}.parquet")
    for split, part in (("validation", rows), ("train", shots)):
        Dataset.from_list([{"id": "x", **row} for row in part]).save_to_disk(tmp_path / f"c/piqa/plain_text/{split}")
    found = [local_questions(local_folder(tmp_path / name, task), task, shots=1) for name in "abc"]
    assert [one.sha256 for one in found] == [expected.sha256] * 3
    assert (expected.split, len(expected.rows), len(expected.shots)) == ("validation", 4, 3)


def test_few_shot_rows_are_read_only_if_they_are_wanted(folder: Path) -> None:
    assert local_questions(folder / "gsm8k", TASKS["gsm8k"], shots=0).shots == []


def test_the_digest_changes_with_every_row() -> None:
    one = Questions("test", [{"a": 1}], [{"b": 1}])
    others = [
        Questions("test", [{"a": 2}], [{"b": 1}]),
        Questions("test", [{"a": 1}], []),
        Questions("test", [], one.rows),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("mmlu", {"answer": 4}),
        ("mmlu", {"choices": ["a"]}),
        ("arc_challenge", {"answerKey": "Z"}),
        ("arc_challenge", {"choices": ["a", "b"]}),
        ("hellaswag", {"label": ""}),
        ("winogrande", {"answer": ""}),
        ("winogrande", {"sentence": "no gap"}),
        ("piqa", {"label": -1}),
        ("gsm8k", {"answer": "12"}),
    ],
)
def test_a_row_without_right_answer_is_refused(task: str, change: dict, folder: Path, tmp_path: Path) -> None:
    source = local_folder(folder, TASKS[task]) / ("anatomy" if task == "mmlu" else "")
    split = TASKS[task].splits[0]
    rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
    write_rows(tmp_path / f"{split}.jsonl", [rows[0], rows[1] | change])
    with pytest.raises(
        InputError, match=rf"{split}: row 2 has no right answer, .* write the row as in {TASKS[task].hub}"
    ):
        local_questions(tmp_path, TASKS[task], shots=0)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [{"question": "?", "solution": "#### 1"}])
    with pytest.raises(
        InputError, match="row 1 has no answer: a row of gsm8k has the columns of openai/gsm8k: question, answer"
    ):
        local_questions(tmp_path, TASKS["gsm8k"], shots=0)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no folder gsm8k: add the questions of openai/gsm8k, or .* --qa\.tasks"):
        local_folder(tmp_path, TASKS["gsm8k"])
    with pytest.raises(InputError, match=r"has no split test: add test\.jsonl or test\.parquet"):
        local_questions(tmp_path, TASKS["gsm8k"], shots=0)
    write_rows(tmp_path / "test.jsonl", [])
    with pytest.raises(InputError, match=r"has no split train, which the 5 few-shot examples .* --qa\.shots gsm8k=0"):
        local_questions(tmp_path, TASKS["gsm8k"], shots=5)
    with pytest.raises(InputError, match="has no rows"):
        local_questions(tmp_path, TASKS["gsm8k"], shots=0)
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"test\.jsonl cannot be read"):
        local_questions(tmp_path, TASKS["gsm8k"], shots=0)
    (tmp_path / "test.jsonl").rename(tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet cannot be read"):
        local_questions(tmp_path, TASKS["gsm8k"], shots=0)
