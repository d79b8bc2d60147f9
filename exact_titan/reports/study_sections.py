"""The sections of a study's report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.reports import study_figures, study_tables
from exact_titan.reports.pages import Heading, Items, Lines, Page, Text
from exact_titan.reports.study_csv import checkpoint_row, comparison_row, loss_mass_rows, pair_rows
from exact_titan.reports.study_tables import WEIGHTS
from exact_titan.study.comparisons import Comparison, Pairs
from exact_titan.study.proof import FILE_NAME as PROOF_FILE
from exact_titan.study.proof import FORMAT as PROOF_FORMAT
from exact_titan.study.proof import proof_lines
from exact_titan.study.weighting import doses, loss_masses
from exact_titan.system.json_files import read_json

FILES = {
    *(f"{name}.png" for name in ("loss_mass", "buckets", "training", "dose")),
    *(f"{name}.csv" for name in ("comparisons", "pairs", "loss_mass", "buckets", "dose", "checkpoints")),
}
"""All pictures and tables that a report may have."""

_READING = (
    "n: number of independent values. With one start n counts the pairs, with several starts the seeds.",
    "difference: mean of (arm - baseline) over the pairs, in nats per target. A negative difference is better. For a "
    "context gain, a positive difference is better.",
    "95 % interval and p (t): Student's t over the pairs. The interval contains the noise of training.",
    "p (sign flip): share of all sign patterns of the n values with a mean at least as far from 0. The test needs 6 "
    "values.",
    "detectable: smallest true difference that n values find with 80 % power at this noise (two-sided, level 5 %).",
    "n needed: the n for 80 % power, if the true difference and the noise are the observed ones. This number is rough, "
    "because both come from few values.",
)


def primary_comparisons(pairs: Pairs) -> list[Comparison]:
    """Return the primary outcome of every arm: the final validation, with the first weights.

    Raises:
        InputError: if a run has no value of the primary outcome.
    """
    step, weights = pairs.final_step, pairs.weights[0]
    found = [pairs.compare(pairs.primary, arm, step, weights) for arm in pairs.arms]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        raise InputError(
            f"the primary outcome {pairs.primary.name!r} has no value in step {step}: a run has lost the target file "
            f"of this step, or the arms have different values of loss.threshold: restore the file, or use one threshold"
        )
    return known


def all_comparisons(pairs: Pairs) -> list[Comparison]:
    """Return every outcome of every arm at every validation that has a value. The final validation is first."""
    found = [
        pairs.compare(outcome, arm, step, weights)
        for weights in pairs.weights
        for step in reversed(pairs.steps(weights))
        for outcome in pairs.outcomes
        for arm in pairs.arms
    ]
    return [one for one in found if one is not None]


def subtitle(pairs: Pairs) -> str:
    """Return the study, its primary outcome and the validation of the primary test in one line."""
    return (
        f"study {pairs.study.name}: arms against {pairs.study.baseline}, primary outcome {pairs.primary.name}, "
        f"step {pairs.final_step}, {WEIGHTS[pairs.weights[0]]}"
    )


def warnings(pairs: Pairs, folder: Path) -> Iterator[str]:
    """Yield a sentence for everything that a reader must know before the numbers."""
    proof = _proof(folder)
    if proof is None:
        yield f"{PROOF_FILE} is missing: `exact-titan study run` writes the proof that the runs are paired."
    elif proof["faults"]:
        yield f"NOT PAIRED, so that the differences have other causes than the arms: {'; '.join(proof['faults'])}"
    if pairs.missing:
        yield (
            f"The study is not finished. The report has the complete pairs only, and its p values hold for a finished "
            f"study only. Runs that are not finished: {'; '.join(pairs.missing)}."
        )


def add_head(page: Page, pairs: Pairs, folder: Path) -> None:
    """Add the title, the design of the study, and the proof of the pairing."""
    study, primary = pairs.study, pairs.primary
    page.add(Heading(f"Study {study.name}", 1))
    page.add(*(Text(one) for one in warnings(pairs, folder)))
    starts, seeds = len(study.starts), len(study.seeds)
    stages = [stage.name + (" (shared by all arms)" if stage.shared else "") for stage in study.stages]
    page.add(
        Items(
            [
                f"Primary outcome, fixed before the runs: {primary.name}. "
                f"{_sentence_case(study_tables.described(primary, pairs.threshold))}. The test uses the final "
                f"validation, step {pairs.final_step}, with the {WEIGHTS[pairs.weights[0]]}.",
                f"Baseline: {study.baseline}. Arms: {', '.join(pairs.arms)}.",
                f"Design: {_count(starts, 'start')} and {_count(seeds, 'seed')} of the order of the data. Stages: "
                f"{', '.join(stages)}. A pair is the run of an arm and the run of the baseline with the same start and "
                f"seed.",
                _scope(pairs),
            ]
        )
    )
    if (proof := _proof(folder)) is not None:
        page.add(Heading("What is paired"), Lines(list(proof_lines(proof))))


def add_primary(page: Page, pairs: Pairs, primary: Sequence[Comparison]) -> None:
    """Add the test of the primary outcome, for all starts and for each start."""
    page.add(
        Heading(f"Is the rule better? Primary outcome: {pairs.primary.name}"),
        study_tables.primary_table(primary),
        Items(study_tables.sentences(primary, pairs.primary)),
        Text(study_tables.multiplicity(pairs)),
        Items(_READING),
    )
    if len(pairs.study.starts) > 1:
        rows = _per_start(pairs)
        page.add(Heading("The primary outcome for each start", 3), study_tables.start_table(rows))


def add_outcomes(page: Page, pairs: Pairs, comparisons: Sequence[Comparison]) -> None:
    """Add the table in the form of the paper's Table 3, and the CSV files of all comparisons and pairs."""
    page.add(Heading("All outcomes"))
    page.add(
        Text(
            "Values are means over the runs of the complete pairs, in nats. Below a value: the difference, with half "
            "the width of its 95 % interval over pairs. These intervals are descriptive."
        ),
        Items([f"{one.name}: {study_tables.described(one, pairs.threshold)}." for one in pairs.outcomes]),
    )
    for weights in pairs.weights:
        at_end = [one for one in comparisons if (one.step, one.weights) == (pairs.final_step, weights)]
        page.add(Heading(f"Step {pairs.final_step}, {WEIGHTS[weights]}", 3), study_tables.outcomes_table(pairs, at_end))
    everything = [*comparisons, *(_per_start(pairs) if len(pairs.study.starts) > 1 else [])]
    page.add_csv("comparisons.csv", [comparison_row(one, pairs) for one in everything])
    page.add_csv("pairs.csv", [row for one in comparisons for row in pair_rows(one)])


def add_figures(page: Page, pairs: Pairs, comparisons: Sequence[Comparison]) -> None:
    """Add the figures, and a CSV of the numbers of each."""
    step, weights = pairs.final_step, pairs.weights[0]
    page.add(Heading("Figures"))
    if masses := loss_masses(pairs):
        page.add_picture(
            "loss_mass.png",
            study_figures.loss_mass_figure(masses, pairs.threshold),
            "Where the loss goes: share of the loss mass (targets times weight) per bucket of effective context, over "
            "all training steps.",
        )
        page.add_csv("loss_mass.csv", [row for one in masses for row in loss_mass_rows(one)])
    found = [pairs.compare_bucket(label, arm, step, weights) for label in pairs.buckets(step) for arm in pairs.arms]
    buckets = [one for one in found if one is not None]
    page.add_picture(
        "buckets.png",
        study_figures.bucket_differences_figure(pairs, buckets),
        f"Difference from the baseline per bucket of effective context, with 95 % intervals over pairs (descriptive), "
        f"{WEIGHTS[weights]}.",
    )
    page.add_csv("buckets.csv", [comparison_row(one, pairs) for one in buckets])
    of_weights = [one for one in comparisons if one.weights == weights]
    page.add_picture(
        "training.png",
        study_figures.training_figure(pairs, of_weights, weights),
        f"Difference from the baseline at every validation, with 95 % intervals over pairs (descriptive), "
        f"{WEIGHTS[weights]}. The numbers of all weights are in comparisons.csv.",
    )
    if dosed := doses(pairs):
        at_end = [one for one in of_weights if one.step == step]
        page.add_picture(
            "dose.png",
            study_figures.dose_figure(pairs, dosed, at_end),
            "Dose curve: difference from the baseline by alpha, for the arms that differ in alpha only, with 95 % "
            "intervals over pairs (descriptive).",
        )
        alpha_of = {arm: (dose.rule, alpha) for dose in dosed for alpha, arm in dose.arms}
        page.add_csv(
            "dose.csv",
            [
                {"rule": alpha_of[one.arm][0], "alpha": alpha_of[one.arm][1], **comparison_row(one, pairs)}
                for one in at_end
                if one.arm in alpha_of
            ],
        )


def add_validations(page: Page, pairs: Pairs, comparisons: Sequence[Comparison]) -> None:
    """Add all numbers of the final validation, and of the validations with target files."""
    page.add(Heading("All numbers (descriptive)"))
    for step in sorted({pairs.final_step, *pairs.steps(pairs.weights[0], with_targets=True)}, reverse=True):
        for weights in pairs.weights:
            rows = [one for one in comparisons if (one.step, one.weights) == (step, weights)]
            page.add(Heading(f"Step {step}, {WEIGHTS[weights]}", 3), study_tables.detail_table(pairs, rows))
    page.add(Text("comparisons.csv has the numbers of all validations, and pairs.csv the values of every pair."))


def add_checkpoints(page: Page, pairs: Pairs) -> None:
    """Add the other statistic: the bootstrap over documents for every single pair."""
    step, weights = pairs.final_step, pairs.weights[0]
    page.add(
        Heading("Do these two checkpoints differ? Conditional on these runs"),
        Text(
            f"Every row compares the two checkpoints of one pair, at step {step} with the {WEIGHTS[weights]}. The "
            f"value is the macro average of the difference over the buckets of the outcome: every bucket has the same "
            f"weight. ± is half of the 95 % interval of a paired bootstrap over documents. The interval is conditional "
            f"on these two runs. The interval does not contain the noise of training, and does not say whether the "
            f"rule is better."
        ),
    )
    outcomes = [one for one in pairs.outcomes if one.select != "context_gain"]
    if step not in pairs.steps(weights, with_targets=True):
        page.add(Text("The runs have not kept the target files of this step (validator.keep_targets)."))
    elif outcomes:
        rows = [one for outcome in outcomes for one in pairs.checkpoints(outcome, step, weights)]
        page.add(study_tables.checkpoint_table(rows))
        page.add_csv("checkpoints.csv", [checkpoint_row(one) for one in rows])


def _per_start(pairs: Pairs) -> list[Comparison]:
    step, weights = pairs.final_step, pairs.weights[0]
    found = [
        pairs.compare(pairs.primary, arm, step, weights, start) for start in pairs.study.starts for arm in pairs.arms
    ]
    return [one for one in found if one is not None]


def _scope(pairs: Pairs) -> str:
    """Return what the intervals hold for."""
    if len(pairs.study.starts) == 1:
        return "The intervals are over the seeds. They hold for this start, and say nothing about another start."
    return (
        "Pairs of one seed share the order of the data, and pairs of one start share their first weights. The "
        "independent values are therefore the seeds, each averaged over the starts (or the starts, if there are more "
        "starts than seeds). The intervals hold for these starts, and say nothing about another start."
    )


def _proof(folder: Path) -> dict[str, Any] | None:
    """Read the proof of the study. None: the study has not written the proof yet."""
    file = folder / PROOF_FILE
    try:
        proof = read_json(file)
        if proof["format"] == PROOF_FORMAT:
            return proof
        problem = f"has the format {proof['format']}, not {PROOF_FORMAT}"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        problem = f"is damaged ({error})"
    raise InputError(f"{file} {problem}: `exact-titan study run` writes the file again")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
