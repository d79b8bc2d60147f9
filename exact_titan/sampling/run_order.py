"""The window at every place of a run: a pure function of the datasets, the weights, the seed and the place."""

from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.order import WindowOrder


class RunOrder:
    """The global order of a run.

    Args:
        mixture: the datasets of the run.
        seed: seed of the order of the windows.
        infinite: whether the epochs repeat without end. Otherwise every window comes at most once.

    Attributes:
        mixture: the argument.
        orders: the order of each dataset of the mixture.
        places: number of places of the run. None: the order has no end.
        shuffled: whether the windows are shuffled. Datasets without weights and without repeats keep their order.
    """

    def __init__(self, mixture: Mixture, *, seed: int, infinite: bool) -> None:
        self.mixture = mixture
        self.orders = [WindowOrder(len(dataset), dataset.manifest.fingerprint, seed) for dataset in mixture.datasets]
        self.places = None if infinite else mixture.places_once()
        self.shuffled = infinite or (mixture.shares is not None and len(self.orders) > 1)

    def window(self, place: int) -> tuple[int, int] | None:
        """Return the index in the mixture's datasets and the window number at a place. None after the last place."""
        if self.places is not None and place >= self.places:
            return None
        index, turn = self.mixture[place]
        return index, self.orders[index][turn] if self.shuffled else turn
