"""The planted facts of a packed dataset of ``exact-titan study facts``: their token ids, and the distances of the asked
facts.

A fact is a key token and the value token after the key. A fact occurs several times in a document: the first occurrence
states the fact, and every further occurrence asks for the fact. A model can predict the value of an asked fact only
from the earlier tokens of the document.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.dataset import NO_LABEL, reading_window
from exact_titan.dataset.parsed_records import AGAIN, parse_record
from exact_titan.errors import InputError
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.json_files import read_json

FILE_NAME = "facts.json"


@dataclass(frozen=True)
class FactTokens:
    """The token ids of the keys, ``first_key … first_key + keys - 1``, and of the values.

    ``facts.json`` in the folder of a packed dataset has these four numbers.
    """

    first_key: int
    keys: int
    first_value: int
    values: int

    def write(self, dataset: Path) -> None:
        """Write ``facts.json`` into the folder of a packed dataset."""
        write_atomically(dataset / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, dataset: Path) -> "FactTokens":
        """Read ``facts.json`` from the folder of a packed dataset.

        Raises:
            InputError: if the folder has no such file, or the file is damaged.
        """
        file = dataset / FILE_NAME
        if not file.is_file():
            raise InputError(
                f"{dataset} has no {FILE_NAME}: facts can be measured only in a dataset of `exact-titan study facts`"
            )
        try:
            content = read_json(file)
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}): {AGAIN}") from error
        tokens: FactTokens = parse_record(cls, content, file)
        return tokens


def fact_distances(dataset: Path, split: str) -> np.ndarray:
    """Return how many tokens an asked fact lies behind its last visible occurrence, for every target of a split.

    Args:
        dataset: a packed dataset of ``exact-titan study facts``.
        split: split of the dataset.

    Returns:
        int32 ``[T]``, one entry for each supervised target in the order of the windows, as in the target files of an
        unshuffled validation. The entry of a value token whose fact also occurs earlier in the same segment of the
        window is the number of tokens between the two values. The entry of every other target is 0.

    Raises:
        InputError: if the folder is not a packed dataset with this split, or has no ``facts.json``.
    """
    tokens = FactTokens.read(dataset)
    packed = PackedDataset(dataset, split)
    input_NL, labels_NL, positions_NL = (np.empty((len(packed), packed.window), dtype=np.int64) for _ in range(3))
    for k in range(len(packed)):
        with reading_window(packed, k):
            packed.read(k, input_NL[k], labels_NL[k], positions_NL[k])
    segment = np.cumsum(positions_NL == 0)
    key = input_NL.ravel() - tokens.first_key
    value = labels_NL.ravel() - tokens.first_value
    at_F = np.flatnonzero((key >= 0) & (key < tokens.keys) & (value >= 0) & (value < tokens.values))
    fact_F = (segment[at_F] * tokens.keys + key[at_F]) * tokens.values + value[at_F]
    # The stable sort puts the occurrences of a fact in a segment next to each other, in their order.
    order_F = np.argsort(fact_F, kind="stable")
    asked = fact_F[order_F][1:] == fact_F[order_F][:-1]
    distance = np.zeros(labels_NL.size, dtype=np.int32)
    distance[at_F[order_F][1:][asked]] = np.diff(at_F[order_F])[asked]
    return distance[labels_NL.ravel() != NO_LABEL]
