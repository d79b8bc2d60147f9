"""How the arms of a study weight the loss: the loss mass per bucket, and the arms that differ in alpha only."""

from dataclasses import dataclass
from pathlib import Path

from exact_titan.runs.metrics_log import read_records
from exact_titan.runs.run_record import RunRecord, options_of, read_record
from exact_titan.study.comparisons import Pairs
from exact_titan.study.pairing import differences

_OF_THE_PAIR = {"dataloader.seed", "debug.seed"}
"""Options that differ between the pairs of an arm."""


@dataclass(frozen=True)
class LossMass:
    """The loss mass of an arm, over all log steps of its runs.

    Attributes:
        arm: name of the arm.
        targets: number of training targets in every bucket, by ``<lo>-<hi>``.
        weights: mean weight of a target in every bucket. 1 in a bucket without targets.
    """

    arm: str
    targets: dict[str, int]
    weights: dict[str, float]

    @property
    def percent(self) -> dict[str, float]:
        """Share of every bucket in the sum of the weights of all targets, in percent."""
        mass = {label: count * self.weights[label] for label, count in self.targets.items()}
        total = sum(mass.values())
        return {label: 100 * one / total for label, one in mass.items()}

    def tail_percent(self, threshold: int) -> float:
        """Return the share of the tail in percent. ``threshold``: first effective context of the tail."""
        return sum(share for label, share in self.percent.items() if int(label.split("-")[0]) >= threshold)


@dataclass(frozen=True)
class Dose:
    """Arms that differ in ``loss.alpha`` only.

    Attributes:
        rule: their rule.
        arms: alpha and name of two or more arms, by ascending alpha.
        baseline: the alpha of the baseline. For the rule ``standard`` the alpha is 0, because alpha 0 gives all targets
            the weight 1. None: the baseline differs from the arms in another option.
    """

    rule: str
    arms: tuple[tuple[float, str], ...]
    baseline: float | None


def loss_masses(pairs: Pairs) -> list[LossMass]:
    """Return the loss mass of the baseline and of every arm with a complete pair, if the runs have log steps."""
    found = []
    for arm, runs in _runs(pairs).items():
        targets: dict[str, int] = {}
        mass: dict[str, float] = {}
        for record in (one for run in runs for one in read_records(run, "train")):
            for label, row in record["buckets"].items():
                targets[label] = targets.get(label, 0) + row["targets"]
                mass[label] = mass.get(label, 0.0) + row["targets"] * record["weights"][label]
        if any(targets.values()):
            weights = {label: mass[label] / count if count else 1.0 for label, count in targets.items()}
            found.append(LossMass(arm, targets, weights))
    return found


def doses(pairs: Pairs) -> list[Dose]:
    """Return the groups of arms that differ in ``loss.alpha`` only, with two or more values of alpha."""
    records = {arm: record for arm, runs in _runs(pairs).items() if (record := read_record(runs[0])) is not None}
    groups: list[list[str]] = []
    for arm in pairs.arms:
        if arm in records:
            group = next((one for one in groups if _differing(records[one[0]], records[arm]) <= {"loss.alpha"}), None)
            groups.append([arm]) if group is None else group.append(arm)
    return [_dose(group, records, pairs.study.baseline) for group in groups if len(group) > 1]


def _dose(group: list[str], records: dict[str, RunRecord], baseline: str) -> Dose:
    options = {arm: options_of(records[arm].config) for arm in group}
    alphas = tuple(sorted((float(options[arm]["loss.alpha"]), arm) for arm in group))
    base = None
    if baseline in records:
        of_baseline = options_of(records[baseline].config)
        differing = _differing(records[baseline], records[group[0]])
        if differing <= {"loss.alpha"}:
            base = float(of_baseline["loss.alpha"])
        elif of_baseline["loss.rule"] == "standard" and differing <= {"loss.alpha", "loss.rule"}:
            base = 0.0
    return Dose(options[group[0]]["loss.rule"], alphas, base)


def _differing(one: RunRecord, other: RunRecord) -> set[str]:
    return differences(one, other).keys() - _OF_THE_PAIR


def _runs(pairs: Pairs) -> dict[str, list[Path]]:
    """Return the folders of the runs of the complete pairs, by arm, the baseline first."""
    base = {key: pair[0].folder for of_arm in pairs.runs.values() for key, pair in of_arm.items()}
    arms = {arm: [pair[1].folder for pair in of_arm.values()] for arm, of_arm in pairs.runs.items()}
    return {pairs.study.baseline: [base[key] for key in sorted(base)], **arms}
