"""The option ``dataset_path``: the folder of a packed dataset, or several folders, with or without weights.

Example: ``packed/web=3,packed/math=1``. A list in a TOML is passed as one string. A comma separates two entries, as in
the list options of torchtitan on the command line.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from exact_titan.errors import InputError

_WEIGHT = re.compile(r"\d+(\.\d+)?|\.\d+|\d+/0*[1-9]\d*")


@dataclass(frozen=True)
class Entry:
    """One folder and its weight. The weight is an exact fraction, so the shares are exact. None: no weight."""

    folder: Path
    weight: Fraction | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.weight is None else f"{self.folder}={self.weight}"


def parse(dataset_path: str) -> list[Entry]:
    """Parse ``dataset_path`` to one or more entries. Either all entries have weights above 0, or no entry has a weight.

    A weight is an integer, a decimal or a fraction. A run reads several datasets without weights one after another. If
    the whole text, or the text of an entry, is an existing folder, the text is the folder's path: a comma or ``=`` is
    then part of the name.

    Raises:
        InputError: if an entry is empty, a weight is 0 or no number, the weights sum to 0, or a weight is missing.
    """
    if Path(dataset_path).is_dir():
        return [Entry(Path(dataset_path))]
    entries = [_entry(text.strip(), dataset_path) for text in dataset_path.split(",")]
    weights = [entry.weight for entry in entries if entry.weight is not None]
    if not weights:
        return entries
    if not sum(weights):
        raise InputError(f"dataset_path is {dataset_path}: the weights sum to 0, give the datasets weights above 0")
    for entry in entries:
        if not entry.weight:
            what = "no weight" if entry.weight is None else "the weight 0"
            raise InputError(
                f"dataset_path is {dataset_path}: {entry.folder} has {what}, write "
                f"{entry.folder}=NUMBER or leave it out"
            )
    return entries


def join(entries: list[Entry]) -> str:
    """Return the ``dataset_path`` of the entries."""
    return ",".join(map(str, entries))


def _entry(text: str, dataset_path: str) -> Entry:
    if not text:
        raise InputError(f"dataset_path is {dataset_path!r}: a name is missing, write FOLDER=WEIGHT,FOLDER=WEIGHT")
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return Entry(Path(text))
    if not folder or not _WEIGHT.fullmatch(weight):
        raise InputError(
            f"dataset_path is {dataset_path}: there is no folder {text}, and {weight!r} is no weight: write it as 3, "
            f"0.25 or 1/3"
        )
    return Entry(Path(folder), Fraction(weight))
