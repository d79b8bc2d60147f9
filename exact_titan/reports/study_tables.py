"""The tables and sentences of a study's report."""

import math
from collections.abc import Sequence

from exact_titan.reports.pages import Table
from exact_titan.runs.records import Weights
from exact_titan.study.comparisons import CheckpointComparison, Comparison, Pairs
from exact_titan.study.spec import Outcome
from exact_titan.study.statistics import LEVEL, POWER, holm

WEIGHTS: dict[Weights, str] = {"last": "last weights", "ema": "EMA of the weights"}

_COLUMNS = (
    "n",
    "baseline",
    "arm",
    "difference",
    "95 % interval",
    "p (t)",
    "p (sign flip)",
    "detectable",
    "n needed",
)


def described(outcome: Outcome, threshold: int) -> str:
    """Return the meaning of an outcome in a few words."""
    if outcome.select == "facts":
        most = "" if outcome.max_distance is None else f" and fewer than {outcome.max_distance:,}"
        return f"cross-entropy of the asked facts that lie {max(1, outcome.min_distance):,} or more{most} tokens back"
    return {
        "tail": f"cross-entropy of the targets with a context of {threshold:,} or more",
        "below_tail": f"cross-entropy of the targets with a context below {threshold:,}",
        "all": "cross-entropy of all targets",
        "context_gain": f"gain of the tail from the context beyond {outcome.piece} tokens; higher is better",
    }[outcome.select]


def primary_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the table of the primary outcome, one arm a row, with Holm's correction over the arms."""
    place = _COLUMNS.index("p (t)") + 1
    rows = []
    for one, p in zip(comparisons, holm([one.test.p for one in comparisons]), strict=True):
        cells = _cells(one)
        rows.append([one.arm, *cells[:place], _p(p), *cells[place:]])
    return Table(["arm", *_COLUMNS[:place], "p (Holm)", *_COLUMNS[place:]], rows)


def detail_table(pairs: Pairs, comparisons: Sequence[Comparison]) -> Table:
    """Return a table with one outcome and arm a row."""
    rows = [[_marked(one.name, pairs), one.arm, *_cells(one)] for one in comparisons]
    return Table(["outcome", "arm", *_COLUMNS], rows, labels=2)


def start_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table with one start and arm a row."""
    return Table(
        ["start", "arm", *_COLUMNS], [[str(one.start), one.arm, *_cells(one)] for one in comparisons], labels=2
    )


def outcomes_table(pairs: Pairs, comparisons: Sequence[Comparison]) -> Table:
    """Return the table in the form of the paper's Table 3: one arm a row, one outcome a column.

    Args:
        pairs: the pairs of the study.
        comparisons: all comparisons at one validation.
    """
    by_cell = {(one.name, one.arm): one for one in comparisons}
    outcomes = [one for one in pairs.outcomes if any(name == one.name for name, _ in by_cell)]
    header = ["arm", *(_marked(one.name, pairs) for one in outcomes)]
    base = [pairs.study.baseline]
    for outcome in outcomes:
        # The comparison with most pairs has most runs of the baseline.
        of_outcome = [one for one in comparisons if one.name == outcome.name]
        base.append(_value(max(of_outcome, key=lambda one: len(one.counted)).baseline))
    rows = [base]
    for arm in pairs.arms:
        found = [by_cell.get((outcome.name, arm)) for outcome in outcomes]
        rows.append(
            [
                arm,
                *(
                    "-" if one is None else f"{_value(one.value)}\n{_with_error(one.test.mean, one.test.error)}"
                    for one in found
                ),
            ]
        )
    return Table(header, rows)


def differences_table(pairs: Pairs, comparisons: Sequence[Comparison]) -> Table:
    """Return a narrow table for the terminal: one outcome a row, one arm a column.

    Args:
        pairs: the pairs of the study.
        comparisons: all comparisons at one validation.
    """
    baseline = pairs.study.baseline
    by_cell = {(one.name, one.arm): one for one in comparisons}
    rows = []
    for outcome in pairs.outcomes:
        found = [by_cell.get((outcome.name, arm)) for arm in pairs.arms]
        if any(found):
            most = max((one for one in found if one is not None), key=lambda one: len(one.counted))
            cells = ["-" if one is None else _with_error(one.test.mean, one.test.error) for one in found]
            rows.append([_marked(outcome.name, pairs), _value(most.baseline), *cells])
    return Table(["outcome", baseline, *(f"{arm} - {baseline}" for arm in pairs.arms)], rows)


def checkpoint_table(comparisons: Sequence[CheckpointComparison]) -> Table:
    """Return the table of single pairs: one pair a row, one outcome a column."""
    names = list(dict.fromkeys(one.outcome.name for one in comparisons))
    pairs = list(dict.fromkeys((one.arm, one.start, one.seed) for one in comparisons))
    cells = {(one.outcome.name, one.arm, one.start, one.seed): one.difference for one in comparisons}
    documents = {name: max(cells[name, *pair].documents for pair in pairs) for name in names}
    header = ["arm", "start", "seed", *(f"{name} ({documents[name]:,} documents)" for name in names)]
    rows = []
    for arm, start, seed in pairs:
        found = [cells[name, arm, start, seed] for name in names]
        rows.append([arm, str(start), str(seed), *(_with_error(one.value, one.error) for one in found)])
    return Table(header, rows, labels=3)


def sentences(comparisons: Sequence[Comparison], outcome: Outcome) -> list[str]:
    """Return what the test of every arm says, and what the test cannot say.

    Args:
        comparisons: the primary outcome of every arm.
        outcome: the primary outcome.
    """
    adjusted = holm([one.test.p for one in comparisons])
    return [_sentence(one, outcome, p) for one, p in zip(comparisons, adjusted, strict=True)]


def _sentence(one: Comparison, outcome: Outcome, holm_p: float | None) -> str:
    test = one.test
    if not math.isfinite(test.mean):
        return f"{one.arm}: the difference is not a finite number. A run has diverged, or the outcome has no targets."
    if test.error is None or test.detectable is None or holm_p is None:
        return (
            f"{one.arm}: one pair gives no interval. The difference in {one.name} is {_signed(test.mean, None)} nats. "
            f"Add seeds to the study."
        )
    places = _places(test.error)
    verdict = "does not exclude 0"
    if test.excludes_zero:
        better = (test.mean > 0) == (outcome.select == "context_gain")
        verdict = f"excludes 0: {one.arm} is {'better' if better else 'worse'} than the baseline"
        if holm_p >= LEVEL:
            verdict = f"excludes 0, but not after Holm's correction for the number of arms (p {_p(holm_p)})"
    text = (
        f"{one.arm}: the 95 % interval of the difference in {one.name}, {_interval(one)} nats, {verdict}. "
        f"Smallest effect that {test.n} {one.unit} find with {100 * POWER:.0f} % power: "
        f"{test.detectable:.{places}f} nats."
    )
    if test.pairs_needed is not None and not test.excludes_zero:
        text += f" An effect of the observed size needs {test.pairs_needed:,} {one.unit}."
    return text


def multiplicity(pairs: Pairs) -> str:
    """Return which numbers are tests."""
    arms = len(pairs.arms)
    family = "one test" if arms == 1 else f"{arms} tests, one for each arm, with Holm's correction (p (Holm))"
    return (
        f"Only the primary outcome at the final validation is tested: {family}, at the level {LEVEL}. All other "
        f"outcomes, validations and buckets are descriptive. Their intervals and p values are not corrected: about one "
        f"of 20 such intervals excludes 0 by chance."
    )


def _marked(outcome: str, pairs: Pairs) -> str:
    return f"{outcome} (primary)" if outcome == pairs.primary.name else outcome


def _cells(one: Comparison) -> list[str]:
    test = one.test
    return [
        str(test.n),
        _value(one.baseline),
        _value(one.value),
        _signed(test.mean, test.error),
        _interval(one),
        _p(test.p),
        _p(test.sign_flip_p),
        "-" if test.detectable is None else f"{test.detectable:.{_places(test.error)}f}",
        "-" if test.pairs_needed is None else f"{test.pairs_needed:,}",
    ]


def _interval(one: Comparison) -> str:
    test = one.test
    if test.error is None:
        return "-"
    return f"{_signed(test.mean - test.error, test.error)} to {_signed(test.mean + test.error, test.error)}"


def _value(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _signed(value: float, error: float | None) -> str:
    if not math.isfinite(value):
        return "not finite"
    places = _places(error)
    return f"{round(value, places) + 0.0:+.{places}f}"  # the sum has no negative 0


def _with_error(value: float, error: float | None) -> str:
    return _signed(value, error) + ("" if error is None else f" ±{error:.{_places(error)}f}")


def _places(error: float | None) -> int:
    """Return the number of decimals that show two digits of an error, 4 or more."""
    if not error or not math.isfinite(error):
        return 4
    return min(8, max(4, 1 - math.floor(math.log10(error))))


def _p(p: float | None) -> str:
    return "-" if p is None else "<0.0001" if p < 0.0001 else f"{p:.2g}"
