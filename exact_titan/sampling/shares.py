"""The dataset and the turn at every place of a weighted mixture: a periodic schedule with random access.

R. Tijdeman published the schedule ("The chairman assignment problem", Discrete Mathematics 32, 1980). With n datasets,
let ``d = 1 / (2n - 2)``. The *exact share* of a dataset in the first ``k`` places is ``k * weight / sum(weights)``.

1. Turn ``j`` of a dataset is available from the place at which the exact share reaches ``j + d``.
2. The deadline of turn ``j`` is the first place at which the exact share exceeds ``j + 1 - d``.
3. Every place goes to the available turn with the earliest deadline.
"""

import heapq
from collections.abc import Sequence
from functools import cached_property
from math import gcd

import numpy as np

LONGEST_PERIOD = 2**20


class Shares:
    """Assigns the places of a run to n datasets by weight.

    In the first ``k`` places, the number of a dataset's places differs from the exact share
    ``k * weight / sum(weights)`` by at most ``1 - 1 / (2n - 2)``, which is less than one place, for every ``k``. After
    ``period`` places all exact shares are integers, and the schedule repeats. Memory holds one period, 8 bytes per
    place. A lookup of any place takes O(1).

    Args:
        weights: positive integers. Only the ratios of the weights matter.

    Attributes:
        weights: the weights divided by their greatest common divisor: the number of turns of each dataset in a period.
        period: the sum of these weights, in places.

    Raises:
        ValueError: if there are no weights, a weight is below 1, or a period has more than ``LONGEST_PERIOD`` places.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"weights are {list(weights)}: give one or more integers above 0")
        divisor = gcd(*weights)
        self.weights = [weight // divisor for weight in weights]
        self.period = sum(self.weights)
        if self.period > LONGEST_PERIOD:
            raise ValueError(
                f"the shares are whole only every {self.period:,} places, at most {LONGEST_PERIOD:,} are allowed"
            )

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Return the dataset at ``place >= 0`` of the run, and the turn of the dataset at this place."""
        round_, rest = divmod(place, self.period)
        dataset_D, turn_D = self._schedule
        dataset = int(dataset_D[rest])
        return dataset, round_ * self.weights[dataset] + int(turn_D[rest])

    def turns_at(self, place_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the datasets and the turns at places, as ``self[place]`` for every place: two arrays int64 ``[N]``."""
        round_N, rest_N = np.divmod(place_N, self.period)
        dataset_N, turn_N = (of_period[rest_N].astype(np.int64) for of_period in self._schedule)
        return dataset_N, round_N * np.array(self.weights)[dataset_N] + turn_N

    def place(self, dataset: int, turn: int) -> int:
        """Return the place of turn ``turn`` of ``dataset``."""
        round_, rest = divmod(turn, self.weights[dataset])
        return round_ * self.period + int(np.flatnonzero(self._schedule[0] == dataset)[rest])

    def turns(self, places: int) -> list[int]:
        """Return the number of turns of each dataset in the first ``places`` places."""
        rounds, rest = divmod(places, self.period)
        begun_n = np.bincount(self._schedule[0][:rest], minlength=len(self.weights))
        return [rounds * weight + begun for weight, begun in zip(self.weights, begun_n.tolist(), strict=True)]

    @cached_property
    def _schedule(self) -> tuple[np.ndarray, np.ndarray]:
        """The dataset of each place of a period, and the turn within the period: two arrays int32 ``[period]``."""
        dataset_D, turn_D = (np.zeros(self.period, dtype=np.int32) for _ in range(2))
        if len(self.weights) == 1:
            return dataset_D, turn_D
        inverse_d = 2 * len(self.weights) - 2
        next_turn = [0] * len(self.weights)
        # Integer arithmetic is exact. `first` and `last` are the limits of a dataset's next turn, in places from 1.
        waiting = [(-(-self.period // (inverse_d * weight)), dataset) for dataset, weight in enumerate(self.weights)]
        heapq.heapify(waiting)
        available: list[tuple[int, int]] = []
        for place in range(self.period):
            while waiting and waiting[0][0] <= place + 1:
                _, dataset = heapq.heappop(waiting)
                last = ((next_turn[dataset] + 1) * inverse_d - 1) * self.period // (
                    inverse_d * self.weights[dataset]
                ) + 1
                heapq.heappush(available, (last, dataset))
            _, dataset = heapq.heappop(available)
            dataset_D[place], turn_D[place] = dataset, next_turn[dataset]
            next_turn[dataset] += 1
            first = -(-(next_turn[dataset] * inverse_d + 1) * self.period // (inverse_d * self.weights[dataset]))
            heapq.heappush(waiting, (first, dataset))
        return dataset_D, turn_D
