"""The packed datasets of a run as one: which window of which dataset stands at every place, and what they hold."""

from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from itertools import accumulate, combinations
from math import lcm
from pathlib import Path

import numpy as np

from exact_titan.dataset.dataset import PackedDataset
from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.sampling.dataset_path import Entry, parse
from exact_titan.sampling.shares import Shares


class Mixture:
    """One packed dataset, several mixed by weight, or several one after another, as ``dataset_path`` names them.

    Place ``k`` belongs to a dataset and is a turn of it. By weight (:class:`Shares`), every prefix of the run has its
    share of each dataset within less than one window. The order in which the datasets are named does not matter.

    Args:
        dataset_path: a folder or several (:mod:`exact_titan.sampling.dataset_path`).
        split: ``train`` or ``val``, of all of them.
        manifests: manifests by folder that the caller has read already.

    Attributes:
        dataset_path, split: as given.
        datasets: in the order of their fingerprints.
        shares: the schedule; None for datasets one after another.
        window: inputs per window (L).
        buckets: the buckets of that window.

    Raises:
        InputError: if a dataset is not whole, two were packed with different tokenizers or window lengths, one appears
            twice, or the weights' ratio is too fine (:data:`~exact_titan.sampling.shares.LONGEST_PERIOD`).
    """

    def __init__(
        self, dataset_path: str, split: str = "train", *, manifests: Mapping[Path, Manifest] | None = None
    ) -> None:
        self.dataset_path, self.split = dataset_path, split
        entries = parse(dataset_path)
        known = manifests or {}
        named = [PackedDataset(entry.folder, split, manifest=known.get(entry.folder)) for entry in entries]
        _check_alike(named)
        pairs = sorted(zip(named, entries, strict=True), key=lambda pair: pair[0].manifest.fingerprint)
        self.datasets = [dataset for dataset, _ in pairs]
        self.shares = _shares([entry for _, entry in pairs], dataset_path)
        self.window = self.datasets[0].window
        self.buckets = self.datasets[0].buckets
        self._first_places = [0, *accumulate(len(dataset) for dataset in self.datasets)]

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Index in ``datasets`` of the dataset at ``place >= 0``, and which of its turns that is, from 0."""
        if self.shares is not None:
            return self.shares[place]
        index = bisect_right(self._first_places, place) - 1
        return index, place - self._first_places[index]

    def places_once(self) -> int:
        """Places before a window would come a second time: by weight, where the first dataset has none left."""
        if self.shares is None:
            return self._first_places[-1]
        return min(self.shares.place(index, len(dataset)) for index, dataset in enumerate(self.datasets))

    @property
    def manifests(self) -> dict[Path, Manifest]:
        """The manifest of each dataset by its folder."""
        return {dataset.folder: dataset.manifest for dataset in self.datasets}

    @property
    def counts(self) -> np.ndarray:
        """Supervised targets per bucket to expect in as many windows as the datasets have, int64 ``[len(buckets)]``.

        Each dataset's mean targets per window, by its share of the windows; rounded, so 0 where less than half a target
        is to be expected. For one dataset, and for several one after another, the datasets' own counts.
        """
        total = self._first_places[-1]
        expected_n = [Fraction(0)] * len(self.buckets)
        for index, dataset in enumerate(self.datasets):
            scale = Fraction(1)
            if self.shares is not None:
                scale = Fraction(self.shares.weights[index] * total, self.shares.period * len(dataset))
            expected_n = [sum_ + scale * count for sum_, count in zip(expected_n, dataset.counts.tolist(), strict=True)]
        return np.array([round(expected) for expected in expected_n], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint; of several, ``FINGERPRINT=WEIGHT,…`` with integer weights, if they have any."""
        names = [dataset.manifest.fingerprint for dataset in self.datasets]
        if self.shares is None or len(names) == 1:
            return ",".join(names)
        return ",".join(f"{name}={weight}" for name, weight in zip(names, self.shares.weights, strict=True))

    def difference(self, fingerprint: str) -> str:
        """``WHAT WAS, not WHAT IS`` for another mixture's ``fingerprint``, naming the datasets whose shares differ."""
        folders = {dataset.manifest.fingerprint: str(dataset.folder) for dataset in self.datasets}
        was, now = _shares_of(fingerprint), _shares_of(self.fingerprint)
        changes = [
            f"share {was.get(name, 0)} of {folders.get(name, f'a dataset with fingerprint {name}')}, "
            f"not {now.get(name, 0)}"
            for name in sorted(was | now)
            if was.get(name) != now.get(name)
        ]
        if len(was) == len(now) == 1 or not changes:
            return f"fingerprint {fingerprint}, not {self.fingerprint}"
        return "; ".join(changes)


def _check_alike(datasets: list[PackedDataset]) -> None:
    for one, other in combinations(datasets, 2):
        if one.manifest.fingerprint == other.manifest.fingerprint:
            raise InputError(
                f"{one.folder} and {other.folder} are the same packed dataset: name it once, with all its weight"
            )
    first = datasets[0]
    for other in datasets[1:]:
        ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
        if ours.sha256 != theirs.sha256:
            raise InputError(
                f"{first.folder} and {other.folder} were packed with different tokenizers ({ours.name}, sha256 "
                f"{ours.sha256[:12]}…, and {theirs.name}, {theirs.sha256[:12]}…): pack both with one"
            )
        if first.window != other.window:
            raise InputError(
                f"{first.folder} is packed in windows of {first.window} tokens, {other.folder} in windows of "
                f"{other.window}: pack both with one --seq-len"
            )


def _shares(entries: list[Entry], dataset_path: str) -> Shares | None:
    if len(entries) == 1:
        return Shares([1])
    weights = [entry.weight for entry in entries if entry.weight is not None]
    if not weights:
        return None
    denominator = lcm(*(weight.denominator for weight in weights))
    try:
        return Shares([int(weight * denominator) for weight in weights])
    except ValueError as error:
        raise InputError(f"dataset_path is {dataset_path}: {error}: round the weights to fewer digits") from None


def _shares_of(fingerprint: str) -> dict[str, Fraction]:
    """The share of each dataset by its fingerprint, from a mixture's."""
    parts = [part.partition("=") for part in fingerprint.split(",")]
    weights = {name: int(weight or 1) for name, _, weight in parts}
    return {name: Fraction(weight, sum(weights.values())) for name, weight in weights.items()}
