"""The arms of a study against the baseline: every outcome, at every validation, over the complete pairs of runs.

1. :func:`read_pairs` pairs every finished run of an arm with the baseline's run of the same start and seed.
2. :meth:`Pairs.compare` and :meth:`Pairs.compare_bucket` answer "is the rule better?", over pairs.
3. :meth:`Pairs.checkpoints` answers "do these two checkpoints differ?", over the documents, for every single pair.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np

from exact_titan.errors import InputError
from exact_titan.runs.metrics_log import FILE_NAME
from exact_titan.runs.records import Weights
from exact_titan.study.checkpoint_difference import MacroDifference, macro_difference
from exact_titan.study.outcomes import RunOutcomes, Value
from exact_titan.study.results import Results, stage_runs
from exact_titan.study.spec import Outcome, Study
from exact_titan.study.statistics import PairedTest, independent_values, paired_test

Key = tuple[int, int]
"""Start and seed of a pair."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline, in one outcome or bucket, at one validation.

    Attributes:
        name: name of the outcome, or label of the bucket.
        arm: name of the arm.
        step, weights: the validation.
        start: the start whose pairs are compared. None: all starts.
        baseline, value: mean of the baseline's runs and of the arm's runs, in nats, over the counted pairs.
        targets: number of targets of one run.
        differences: difference (arm - baseline) of every complete pair, by start and seed.
        counted: the pairs that count in the test (:func:`independent_values`).
        test: the test over the independent values of the counted pairs.
    """

    name: str
    arm: str
    step: int
    weights: Weights
    start: int | None
    baseline: float
    value: float
    targets: int
    differences: dict[Key, float]
    counted: list[Key]
    test: PairedTest

    @property
    def unit(self) -> str:
        """The independent values of the test: ``pairs``, or with several starts ``seeds`` or ``starts``."""
        starts, seeds = ({key[place] for key in self.counted} for place in (0, 1))
        if len(starts) == 1:
            return "pairs"
        return "starts" if len(starts) > len(seeds) else "seeds"


@dataclass(frozen=True)
class CheckpointComparison:
    """Two checkpoints of one pair. The difference is the macro average over the buckets of the outcome."""

    outcome: Outcome
    arm: str
    step: int
    weights: Weights
    start: int
    seed: int
    difference: MacroDifference


@dataclass(frozen=True)
class Pairs:
    """The complete pairs of a study.

    Attributes:
        study: the study.
        runs: the baseline's run and the arm's run of every complete pair, by arm, start and seed.
        missing: the runs that are not finished.
        threshold: first effective context of the tail, in tokens: the value of the baseline.
        weights: the weights that all runs have validated. The first are the weights of the primary test: the moving
            average if the runs have one, otherwise the last weights.
    """

    study: Study
    runs: dict[str, dict[Key, tuple[RunOutcomes, RunOutcomes]]]
    missing: list[str]
    threshold: int
    weights: tuple[Weights, ...]

    @property
    def arms(self) -> list[str]:
        """The arms with a complete pair, without the baseline, in the order of the study."""
        return list(self.runs)

    @property
    def primary(self) -> Outcome:
        """The primary outcome."""
        return next(one for one in self.study.outcomes if one.name == self.study.primary)

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes, the primary outcome first."""
        return [self.primary, *(one for one in self.study.outcomes if one.name != self.study.primary)]

    def steps(self, weights: Weights, *, with_targets: bool = False) -> list[int]:
        """Return the validations of all runs, ascending. ``with_targets``: only where all runs have target files."""
        common = set.intersection(*(set(run.steps(weights)) for run in self._all_runs()))
        return sorted(
            step
            for step in common
            if not with_targets or all(run.has_targets(step, weights) for run in self._all_runs())
        )

    @property
    def final_step(self) -> int:
        """The last validation of all runs."""
        return self.steps(self.weights[0])[-1]

    def buckets(self, step: int) -> dict[str, int]:
        """Return the targets of every bucket that has targets in the validation of a step."""
        record = next(self._all_runs()).record(step, self.weights[0])
        return {label: row["targets"] for label, row in record["buckets"].items() if row["targets"]}

    def compare(
        self, outcome: Outcome, arm: str, step: int, weights: Weights, start: int | None = None
    ) -> Comparison | None:
        """Compare an arm with the baseline in an outcome. None if the runs do not have the value at this validation.

        Args:
            outcome: the outcome.
            arm: name of the arm.
            step, weights: the validation.
            start: compare only the pairs of this start.
        """
        return self._compare(
            outcome.name, arm, step, weights, start, lambda run: run.value(outcome, step, weights, self.threshold)
        )

    def compare_bucket(self, label: str, arm: str, step: int, weights: Weights) -> Comparison | None:
        """Compare an arm with the baseline in one bucket. None if the bucket has no targets."""

        def value(run: RunOutcomes) -> Value | None:
            row = run.record(step, weights)["buckets"][label]
            return Value(row["cross_entropy"], row["targets"]) if row["targets"] else None

        return self._compare(label, arm, step, weights, None, value)

    def checkpoints(self, outcome: Outcome, step: int, weights: Weights) -> Iterator[CheckpointComparison]:
        """Yield the comparison of the two checkpoints of every pair. The runs need target files."""
        for arm, pairs in self.runs.items():
            for (start, seed), (base, run) in pairs.items():
                one, other = base.targets(step, weights), run.targets(step, weights)
                assert one is not None, base.folder
                assert other is not None, run.folder
                if not np.array_equal(one.place, other.place):
                    raise InputError(
                        f"{base.folder} and {run.folder} have validated different targets: train them again"
                    )
                chosen_T = base.selected(outcome, one, self.threshold)
                values_T = other.cross_entropy[chosen_T].astype(np.float64) - one.cross_entropy[chosen_T]
                found = macro_difference(values_T, one.document[chosen_T], one.bucket[chosen_T])
                yield CheckpointComparison(outcome, arm, step, weights, start, seed, found)

    def _compare(
        self,
        name: str,
        arm: str,
        step: int,
        weights: Weights,
        start: int | None,
        value_of: Callable[[RunOutcomes], Value | None],
    ) -> Comparison | None:
        pairs = {key: pair for key, pair in self.runs[arm].items() if start in (None, key[0])}
        values = {key: (value_of(base), value_of(run)) for key, (base, run) in pairs.items()}
        known = {key: (one, other) for key, (one, other) in values.items() if one is not None and other is not None}
        if not known or len(known) < len(values):
            return None
        differences = {key: other.value - one.value for key, (one, other) in known.items()}
        independent, counted = independent_values(differences)
        return Comparison(
            name,
            arm,
            step,
            weights,
            start,
            baseline=float(np.mean([known[key][0].value for key in counted])),
            value=float(np.mean([known[key][1].value for key in counted])),
            targets=next(iter(known.values()))[0].targets,
            differences=differences,
            counted=counted,
            test=paired_test(independent),
        )

    def _all_runs(self) -> Iterator[RunOutcomes]:
        for pairs in self.runs.values():
            for pair in pairs.values():
                yield from pair


def read_pairs(results: Results) -> Pairs:
    """Pair the finished runs of the last stage.

    Raises:
        InputError: if no pair is complete, or if two runs have validated different windows.
    """
    study = results.study
    finished = {(run.arm, run.start, run.seed): run for run in results.runs}
    outcomes = {key: RunOutcomes(run.folder) for key, run in finished.items()}
    runs: dict[str, dict[Key, tuple[RunOutcomes, RunOutcomes]]] = {}
    for (arm, start, seed), run in outcomes.items():
        base = outcomes.get((study.baseline, start, seed))
        if arm != study.baseline and base is not None and seed is not None:
            runs.setdefault(arm, {})[start, seed] = (base, run)
    wanted = stage_runs(study, results.folder, len(study.stages) - 1)
    missing = [str(run) for run in wanted if (run.arm, run.start, run.seed) not in finished]
    if not runs:
        raise InputError(
            f"{results.folder}: no pair of runs is finished ({len(finished)} of {len(wanted)} runs are): train the "
            f"study with `exact-titan study run`, then make the report"
        )
    every = [run for pairs in runs.values() for pair in pairs.values() for run in pair]
    weights: tuple[Weights, ...] = tuple(
        one for one in reversed(get_args(Weights)) if all(run.steps(one) for run in every)
    )
    pairs = Pairs(study, runs, missing, threshold=0, weights=weights)
    if not weights or not pairs.steps(weights[0]):
        raise InputError(f"{results.folder}: the runs have no common validation: use one validator.freq in all arms")
    first = every[0]
    for run, one in itertools.product(every, weights):
        for step in pairs.steps(one):
            if run.record(step, one)["windows"] != first.record(step, one)["windows"]:
                raise InputError(
                    f"{run.folder / FILE_NAME} and {first.folder / FILE_NAME} have different validation windows in "
                    f"step {step}: validate all arms on one dataset"
                )
    return dataclasses.replace(pairs, threshold=first.record(pairs.final_step, weights[0])["threshold"])
