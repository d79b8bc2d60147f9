"""The packed datasets of a run as one mixture: the dataset and the turn at every place, and the expected counts."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, combinations
from math import lcm
from pathlib import Path

import numpy as np

from exact_titan.dataset.dataset import ALL, PackedDataset
from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.sampling.dataset_path import Entry, parse
from exact_titan.sampling.shares import Shares


class Mixture:
    """One packed dataset, a weighted mixture of datasets, or several datasets one after another.

    Every place belongs to one dataset and is one turn of this dataset. In a weighted mixture (:class:`Shares`), the
    first ``k`` places contain each dataset's exact share with an error of less than one window, for every ``k``. The
    order of the datasets in ``dataset_path`` does not matter.

    Args:
        dataset_path: one or more folders (:mod:`exact_titan.sampling.dataset_path`).
        split: ``train`` or ``val``. All datasets use the same split.
        manifests: manifests by folder that the caller has read already.
        checked: the shards of each dataset whose files are checked (:class:`PackedDataset`).

    Attributes:
        dataset_path, split: the arguments.
        datasets: the datasets, sorted by fingerprint.
        shares: the schedule. None for datasets one after another.
        window: inputs per window (L).
        buckets: the buckets of a window of L inputs.

    Raises:
        InputError: if a dataset is incomplete, two datasets were packed with different tokenizers or window lengths, a
            dataset appears twice, or the ratio of the weights is too fine
            (:data:`~exact_titan.sampling.shares.LONGEST_PERIOD`).
    """

    def __init__(
        self,
        dataset_path: str,
        split: str = "train",
        *,
        manifests: Mapping[Path, Manifest] | None = None,
        checked: slice = ALL,
    ) -> None:
        self.dataset_path, self.split = dataset_path, split
        entries = parse(dataset_path)
        known = manifests or {}
        named = [
            PackedDataset(entry.folder, split, manifest=known.get(entry.folder), checked=checked) for entry in entries
        ]
        _check_alike(named)
        pairs = sorted(zip(named, entries, strict=True), key=lambda pair: pair[0].manifest.fingerprint)
        self.datasets = [dataset for dataset, _ in pairs]
        self.shares = _shares([entry for _, entry in pairs], dataset_path)
        self.window = self.datasets[0].window
        self.buckets = self.datasets[0].buckets
        self._first_places = [0, *accumulate(len(dataset) for dataset in self.datasets)]

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Return the index in ``datasets`` of the dataset at ``place >= 0``, and the turn of the dataset there."""
        if self.shares is not None:
            return self.shares[place]
        index = bisect_right(self._first_places, place) - 1
        return index, place - self._first_places[index]

    def turns_at(self, place_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the datasets and the turns at places, as ``self[place]`` for every place: two arrays int64 ``[N]``."""
        if self.shares is not None:
            return self.shares.turns_at(place_N)
        first_D = np.array(self._first_places)
        index_N = np.searchsorted(first_D, place_N, side="right") - 1
        return index_N, place_N - first_D[index_N]

    def places_once(self) -> int:
        """Return the number of places before any window repeats.

        In a weighted mixture, the first dataset without windows left ends this range.
        """
        if self.shares is None:
            return self._first_places[-1]
        return min(self.shares.place(index, len(dataset)) for index, dataset in enumerate(self.datasets))

    @property
    def manifests(self) -> dict[Path, Manifest]:
        """The manifest of each dataset by its folder."""
        return {dataset.folder: dataset.manifest for dataset in self.datasets}

    @property
    def counts(self) -> np.ndarray:
        """Expected supervised targets per bucket, int64 ``[len(buckets)]``.

        The counts are for N windows of the run. N is the number of windows of all datasets together. In a weighted
        mixture, the count is the sum over the datasets of: mean targets per window, times N, times the dataset's share.
        The sum is rounded: below half a target the count is 0. For one dataset, and for several datasets one after
        another, the counts are the sum of the datasets' counts.
        """
        expected_n = [Fraction(0)] * len(self.buckets)
        for dataset, scale in zip(self.datasets, self._scales(), strict=True):
            expected_n = [sum_ + scale * count for sum_, count in zip(expected_n, dataset.counts.tolist(), strict=True)]
        return np.array([round(expected) for expected in expected_n], dtype=np.int64)

    @property
    def joint_counts(self) -> np.ndarray:
        """Expected supervised targets per bucket of effective context and of packed position, float64 ``[n, n]``.

        Rows and columns as in :meth:`PackedDataset.joint_counts`, windows as in :attr:`counts`.

        Raises:
            InputError: if a shard is broken.
        """
        return self.mix_joint_counts([dataset.joint_counts().numpy() for dataset in self.datasets])

    def mix_joint_counts(self, of_datasets: Sequence[np.ndarray]) -> np.ndarray:
        """Return :attr:`joint_counts` from the joint counts of each dataset, int64 ``[n, n]``."""
        scaled = [joint_nn * float(scale) for joint_nn, scale in zip(of_datasets, self._scales(), strict=True)]
        return np.sum(scaled, axis=0)

    def _scales(self) -> list[Fraction]:
        """Return the factor from the targets of each dataset to the targets in N windows of the run."""
        if self.shares is None:
            return [Fraction(1)] * len(self.datasets)
        total, shares = self._first_places[-1], self.shares
        return [
            Fraction(weight * total, shares.period * len(dataset))
            for weight, dataset in zip(shares.weights, self.datasets, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset. For several datasets ``FINGERPRINT,…`` or, weighted, ``FINGERPRINT=WEIGHT,…``.

        The weights are integers.
        """
        names = [dataset.manifest.fingerprint for dataset in self.datasets]
        if self.shares is None or len(names) == 1:
            return ",".join(names)
        return ",".join(f"{name}={weight}" for name, weight in zip(names, self.shares.weights, strict=True))

    def difference(self, fingerprint: str) -> str:
        """Return the difference to another mixture's ``fingerprint`` as ``OTHER, not THIS``.

        The text names the datasets with different shares.
        """
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
                f"{one.folder} and {other.folder} are the same packed dataset: name it once, with its whole weight"
            )
    first = datasets[0]
    for other in datasets[1:]:
        ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
        if ours.sha256 != theirs.sha256:
            raise InputError(
                f"{first.folder} and {other.folder} were packed with different tokenizers ({ours.name}, sha256 "
                f"{ours.sha256[:12]}…, and {theirs.name}, {theirs.sha256[:12]}…): pack both with one tokenizer"
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
    """Return the share of each dataset, by the dataset's fingerprint, from a mixture's fingerprint."""
    parts = [part.partition("=") for part in fingerprint.split(",")]
    weights = {name: int(weight or 1) for name, _, weight in parts}
    return {name: Fraction(weight, sum(weights.values())) for name, weight in weights.items()}
