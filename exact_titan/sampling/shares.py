"""Whose turn it is at every place of a run that mixes datasets by weight: a periodic schedule, so nothing is walked.

The schedule is R. Tijdeman's ("The chairman assignment problem", Discrete Mathematics 32, 1980). With n datasets and
``d = 1 / (2n - 2)``, turn ``j`` of a dataset may be taken once its share of the places has grown to ``j + d``, and must
be taken by the first place at which that share exceeds ``j + 1 - d``; of those that may be taken, the most pressing is.
"""

import heapq
from collections.abc import Sequence
from functools import cached_property
from math import gcd

import numpy as np

LONGEST_PERIOD = 2**20


class Shares:
    """Deals the places of a run to n datasets by weight.

    In the first ``k`` places each dataset has its exact share ``k * weight / sum(weights)`` within
    ``1 - 1 / (2n - 2)``, less than one place, for every ``k``. After ``period`` places all shares are whole and the
    schedule starts again, so one period is all that is kept: 8 bytes a place, and a place of the run is found in O(1).

    Args:
        weights: positive integers. Only their ratios matter.

    Attributes:
        weights: the same, without common divisors: turns of each dataset in a period.
        period: their sum, in places.

    Raises:
        ValueError: for no weights, a weight below 1, or a period of more than ``LONGEST_PERIOD`` places.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"weights are {list(weights)}: give one or more integers above 0")
        divisor = gcd(*weights)
        self.weights = [weight // divisor for weight in weights]
        self.period = sum(self.weights)
        if self.period > LONGEST_PERIOD:
            raise ValueError(
                f"the shares are whole only every {self.period:,} places, at most {LONGEST_PERIOD:,} can be"
            )

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Dataset at ``place >= 0`` of the run, and which of its turns that is, from 0."""
        round_, rest = divmod(place, self.period)
        dataset_D, turn_D = self._schedule
        dataset = int(dataset_D[rest])
        return dataset, round_ * self.weights[dataset] + int(turn_D[rest])

    def place(self, dataset: int, turn: int) -> int:
        """Place of the run at which ``dataset`` has turn ``turn``, from 0."""
        round_, rest = divmod(turn, self.weights[dataset])
        return round_ * self.period + int(np.flatnonzero(self._schedule[0] == dataset)[rest])

    def turns(self, places: int) -> list[int]:
        """How many of the first ``places`` places each dataset has."""
        rounds, rest = divmod(places, self.period)
        begun_n = np.bincount(self._schedule[0][:rest], minlength=len(self.weights))
        return [rounds * weight + begun for weight, begun in zip(self.weights, begun_n.tolist(), strict=True)]

    @cached_property
    def _schedule(self) -> tuple[np.ndarray, np.ndarray]:
        """Dataset of each place of a period, and which of its turns in the period: int32 ``[D]`` each."""
        dataset_D, turn_D = (np.zeros(self.period, dtype=np.int32) for _ in range(2))
        if len(self.weights) == 1:
            return dataset_D, turn_D
        inverse_d = 2 * len(self.weights) - 2
        next_turn = [0] * len(self.weights)
        # Integers only, so exact. First and last place of each dataset's next turn, places counted from 1.
        waiting = [(-(-self.period // (inverse_d * weight)), dataset) for dataset, weight in enumerate(self.weights)]
        heapq.heapify(waiting)
        pressing: list[tuple[int, int]] = []
        for place in range(self.period):
            while waiting and waiting[0][0] <= place + 1:
                _, dataset = heapq.heappop(waiting)
                last = ((next_turn[dataset] + 1) * inverse_d - 1) * self.period // (
                    inverse_d * self.weights[dataset]
                ) + 1
                heapq.heappush(pressing, (last, dataset))
            _, dataset = heapq.heappop(pressing)
            dataset_D[place], turn_D[place] = dataset, next_turn[dataset]
            next_turn[dataset] += 1
            first = -(-(next_turn[dataset] * inverse_d + 1) * self.period // (inverse_d * self.weights[dataset]))
            heapq.heappush(waiting, (first, dataset))
        return dataset_D, turn_D
