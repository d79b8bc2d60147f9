"""The questions of a task, from local files or from the Hugging Face hub.

A local split is one of these, in a folder of the task:

- ``<split>.jsonl``: one JSON object a line.
- ``<split>.parquet``, or ``<split>-*.parquet`` as in a dataset of the hub.
- ``<split>/``: a folder of ``Dataset.save_to_disk``.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.suites.qa.tasks import QaTask, Row
from exact_titan.system.json_files import parse_json


@dataclass(frozen=True)
class Questions:
    """The questions of a task, or of one subject of MMLU.

    Attributes:
        split: name of the split of the questions.
        rows: the questions.
        shots: the rows that few-shot examples are drawn from. Empty: no few-shot examples are wanted.
    """

    split: str
    rows: list[Row]
    shots: list[Row]

    @property
    def sha256(self) -> str:
        """Digest of all rows."""
        digest = hashlib.sha256()
        for row in (*self.rows, {}, *self.shots):
            digest.update(json.dumps(row, sort_keys=True).encode("utf-8") + b"\n")
        return digest.hexdigest()


def local_folder(folder: Path, task: QaTask) -> Path:
    """Return the folder of a task inside ``--qa.folder``.

    Raises:
        InputError: if there is none.
    """
    for name in task.folders:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(
        f"--qa.folder {folder} has no folder {task.folders[-1]}: add the questions of {task.hub}, or leave the task "
        f"out with --qa.tasks"
    )


def local_questions(folder: Path, task: QaTask, shots: int) -> Questions:
    """Read the questions of a folder of a task.

    Args:
        folder: the folder of the splits.
        task: the task.
        shots: number of few-shot examples.

    Raises:
        InputError: if a split is missing, or if a row is wrong.
    """
    split = next((one for one in task.splits if _split_files(folder, one)), None)
    if split is None:
        raise InputError(
            f"{folder} has no split {task.splits[0]}: add {task.splits[0]}.jsonl or {task.splits[0]}.parquet"
        )
    if shots and not _split_files(folder, task.shots_split):
        raise InputError(
            f"{folder} has no split {task.shots_split}, which the {shots} few-shot examples of a question come from: "
            f"add the split, or ask without examples: --qa.shots {_name(task)}=0"
        )
    return Questions(
        split,
        _checked(_read(folder, split), task, folder / split),
        _checked(_read(folder, task.shots_split), task, folder / task.shots_split) if shots else [],
    )


def hub_questions(task: QaTask, config: str | None, shots: int) -> Questions:
    """Load the questions of a dataset of the Hugging Face hub, or of the local cache of the hub.

    Raises:
        InputError: if the dataset cannot be loaded, or if a row is wrong.
    """
    from datasets import load_dataset

    where = f"{task.hub} ({config})" if config else task.hub
    rows = {}
    for split in (task.splits[0], task.shots_split)[: 2 if shots else 1]:
        try:
            loaded = load_dataset(task.hub, config, split=split)
        # The errors of datasets and huggingface_hub for a hub that does not answer are OSErrors and ValueErrors.
        except (OSError, ValueError) as error:
            raise InputError(
                f"the dataset {where} of the Hugging Face hub cannot be loaded ({error}): name a folder with the "
                f"questions by --qa.folder"
            ) from None
        rows[split] = _checked(loaded, task, f"{where}, {split}")
    return Questions(task.splits[0], rows[task.splits[0]], rows.get(task.shots_split, []) if shots else [])


def _name(task: QaTask) -> str:
    return task.lm_eval.rstrip("_")


def _split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, or its folder. Empty: the split does not exist."""
    files = [file for file in (folder / f"{split}.jsonl", folder / f"{split}.parquet") if file.is_file()]
    if not files and (folder / split / "state.json").is_file():
        files = [folder / split]
    return files[:1] or sorted(folder.glob(f"{split}-*.parquet"))


def _read(folder: Path, split: str) -> Iterable[Row]:
    """Yield the rows of a split.

    Raises:
        InputError: naming the file that cannot be read.
    """
    for file in _split_files(folder, split):
        try:
            if file.is_dir():
                from datasets import load_from_disk

                yield from load_from_disk(str(file))
            elif file.suffix == ".parquet":
                from pyarrow.parquet import read_table

                yield from read_table(file).to_pylist()
            else:
                with file.open("rb") as lines:
                    yield from (parse_json(line) for line in lines if line.strip())
        except (OSError, ValueError) as error:  # JSONDecodeError, UnicodeDecodeError and ArrowInvalid are ValueErrors
            if isinstance(error, OSError) and error.errno is not None:  # pyarrow's errors about the content have none
                raise
            raise InputError(f"{file} cannot be read ({error}): copy the file again") from None


def _checked(rows: Iterable[Row], task: QaTask, where: Path | str) -> list[Row]:
    """Return the columns of the task in every row.

    Raises:
        InputError: naming the row and its first missing column, or the row whose answer is not among its choices.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        missing = [name for name in task.columns if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise InputError(
                f"{where}: row {number} has no {missing[0]}: a row of {_name(task)} has the columns of {task.hub}: "
                f"{', '.join(task.columns)}"
            )
        try:
            right = task.check(row)
        except (KeyError, TypeError, ValueError, AttributeError):
            right = False
        if not right:
            raise InputError(
                f"{where}: row {number} has no right answer, or a column of another type: write the row as in "
                f"{task.hub}"
            )
        checked.append({name: row[name] for name in task.columns})
    if not checked:
        raise InputError(f"{where} has no rows: add questions")
    return checked
