"""The window at every place of a run: a pure function of the datasets, the weights, the seed and the place."""

import numpy as np

from exact_titan.errors import InputError
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.order import SMALL, VERSION, WindowOrder

_MARK = ";order="
"""Separates the version from the fingerprint in the state of a dataloader, because the state may not get a new key.
``run.json`` has the version as a value, but torchtitan's own trainer writes no ``run.json``."""


class RunOrder:
    """The global order of a run.

    Args:
        mixture: the datasets of the run.
        seed: seed of the order of the windows.
        infinite: whether the epochs repeat without end. Otherwise every window comes at most once.
        version: version of the shuffle of a small dataset (:mod:`exact_titan.sampling.order`).

    Attributes:
        mixture: the argument.
        version: the argument if it decides the windows, else 1: no dataset is small, or the order has no shuffle.
        orders: the order of each dataset of the mixture.
        places: number of places of the run. None: the order has no end.
        shuffled: whether the windows are shuffled. Datasets without weights and without repeats keep their order.
    """

    def __init__(self, mixture: Mixture, *, seed: int, infinite: bool, version: int = VERSION) -> None:
        self.mixture = mixture
        self.shuffled = infinite or (mixture.shares is not None and len(mixture.datasets) > 1)
        has_small = any(len(dataset) <= SMALL for dataset in mixture.datasets)
        self.version = version if self.shuffled and has_small else 1
        self.orders = [
            WindowOrder(len(dataset), dataset.manifest.fingerprint, seed, self.version) for dataset in mixture.datasets
        ]
        self.places = None if infinite else mixture.places_once()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the mixture. If the version decides the windows, ``;order=VERSION`` follows."""
        return self.mixture.fingerprint + (f"{_MARK}{self.version}" if self.version > 1 else "")

    def window(self, place: int) -> tuple[int, int] | None:
        """Return the index in the mixture's datasets and the window number at a place. None after the last place."""
        if self.places is not None and place >= self.places:
            return None
        index, turn = self.mixture[place]
        return index, self.orders[index][turn] if self.shuffled else turn

    def work(self, first: int, count: int) -> np.ndarray:
        """Return the attention work of the windows at places ``first … first + count - 1``, int64 ``[count]``.

        A place after the last place is a window of padding. Every dataset has its attention work
        (:attr:`PackedDataset.work`).
        """
        work_N = np.full(count, self.mixture.window**2, dtype=np.int64)
        inside = count if self.places is None else min(count, max(0, self.places - first))
        index_N, turn_N = self.mixture.turns_at(np.arange(first, first + inside))
        for index, (dataset, order) in enumerate(zip(self.mixture.datasets, self.orders, strict=True)):
            here = np.flatnonzero(index_N == index)
            if len(here):
                assert dataset.work is not None
                work_N[here] = dataset.work[order.windows(turn_N[here]) if self.shuffled else turn_N[here]]
        return work_N


def split_fingerprint(fingerprint: str) -> tuple[str, int]:
    """Return the mixture's fingerprint and the version of the order from :attr:`RunOrder.fingerprint`.

    Raises:
        InputError: if a later version of exact_titan made the order.
    """
    data, _, version = fingerprint.partition(_MARK)
    if version not in ("", *map(str, range(2, VERSION + 1))):
        raise InputError(
            f"the checkpoint has version {version} of the order of the windows, and this version of exact_titan has "
            f"the versions up to {VERSION}: resume with the exact_titan that saved the checkpoint"
        )
    return data, int(version or 1)
