"""Folders of studies without a training: the real writers write the files of the runs, a formula gives the losses."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.dataset import NO_LABEL
from exact_titan.exposure import Buckets, bucket_weights, effective_context
from exact_titan.runs.exit_codes import EXIT_CODE_FILE
from exact_titan.runs.metrics_log import MetricsLog
from exact_titan.runs.records import (
    ContextGain,
    ContextLosses,
    ValidationSet,
    Weights,
)
from exact_titan.runs.run_record import RunRecord
from exact_titan.runs.target_losses import TargetLosses, write_target_losses
from exact_titan.study.facts import FactTokens, fact_distances
from exact_titan.study.results import ArmRun, stage_runs, write_study_file
from exact_titan.study.spec import Outcome, Stage, Study
from tests.metrics_records import train_record, validation_record
from tests.support import pack_texts

WINDOW, THRESHOLD = 64, 16
OUTCOMES = (
    Outcome("tail", "tail"),
    Outcome("below", "below_tail"),
    Outcome("far facts", "facts", min_distance=16),
    Outcome("near facts", "facts", max_distance=16),
    Outcome("context gain", "context_gain", piece=16),
    Outcome("all", "all"),
)


def pack_facts(folder: Path, documents: int = 60) -> Path:
    """Pack documents with planted facts, half of them for validation. Keys are 100 … 109, values 200 … 209."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(documents):
        words: list[int] = []
        facts = {int(key): int(rng.integers(200, 210)) for key in rng.permutation(np.arange(100, 110))[:4]}
        for _ in range(int(rng.integers(2, 14))):
            words += rng.integers(1, 100, int(rng.integers(1, 8))).tolist()
            key = int(rng.choice(list(facts)))
            words += [key, facts[key]]
        texts.append(" ".join(map(str, words)))
    dataset = pack_texts(folder, texts, seq_len=WINDOW, val_fraction=0.5)
    FactTokens(first_key=100, keys=10, first_value=200, values=10).write(dataset.folder)
    return dataset.folder


def make_study(
    arms: dict[str, dict[str, Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    starts: Sequence[int] = (0,),
    primary: str = "far facts",
    outcomes: tuple[Outcome, ...] = OUTCOMES,
) -> Study:
    """Return a study whose baseline is the first arm. ``arms``: the options of the section ``loss``."""
    stages = (Stage("start", True, {}), Stage("extension", False, {}))
    sections = {arm: {"loss": loss} for arm, loss in arms.items()}
    baseline = next(iter(arms))
    return Study("toy", baseline, sections, tuple(seeds), tuple(starts), stages, {}, primary, outcomes)


class Validation:
    """The targets of the validation windows of a dataset: bucket, document, place and distance of the fact."""

    def __init__(self, dataset: Path) -> None:
        packed = PackedDataset(dataset, "val")
        windows = [packed[k] for k in range(len(packed))]
        valid = [(one["labels"] != NO_LABEL).numpy() for one in windows]
        buckets = [Buckets(WINDOW).index(effective_context(one["positions"])).numpy() for one in windows]
        self.dataset = dataset
        self.set = ValidationSet(packed.manifest.fingerprint, "val", WINDOW, len(packed), None)
        self.bucket = np.concatenate([bucket[ok] for bucket, ok in zip(buckets, valid, strict=True)])
        self.place = np.flatnonzero(np.concatenate(valid))
        # A document is a new segment here, because no test needs the parts of a document to have one number.
        self.document = (np.concatenate([one["positions"].numpy() for one in windows]) == 0).cumsum()[self.place]
        self.distance = fact_distances(dataset, "val")


def write_study(
    folder: Path,
    dataset: Path,
    study: Study,
    *,
    effects: dict[str, float],
    steps: Sequence[int] = (20, 40),
    weights: Sequence[Weights] = ("last", "ema"),
    keep: int = 2,
    unfinished: Collection[tuple[str, int, int]] = (),
) -> None:
    """Write the folder of a study: ``effects`` is the change of the tail's cross-entropy of every arm, in nats.

    A quarter of the effect, with the other sign, moves the targets below the tail. Facts have twice the effect. Every
    pair has its own noise of training.
    """
    folder.mkdir()
    write_study_file(study, folder)
    validation = Validation(dataset)
    for run in stage_runs(study, folder, len(study.stages) - 1):
        if (run.arm, run.start, run.seed) not in unfinished:
            write_run(run, study, validation, effects[run.arm], steps=steps, weights=weights, keep=keep)


def losses_of(run: ArmRun, validation: Validation, effect: float, step: int, weights: Weights) -> np.ndarray:
    """Return the cross-entropy of every target of a run, float64 ``[T]``."""
    # The baseline's noise of a seed is also in the arms: the order of the data is the same.
    target_T = np.random.default_rng([1, run.start, run.seed or 0]).normal(3, 1, len(validation.bucket))
    # The name of the arm is part of the seed, so that an arm has its own noise.
    own = np.random.default_rng([2, run.start, run.seed or 0, *run.arm.encode()])
    noise = 0.001 if weights == "last" else 0.0004
    tail_T = validation.bucket >= np.searchsorted(Buckets(WINDOW).lower_bounds.numpy(), THRESHOLD)
    scale_T = np.where(validation.distance >= 16, 2.0, np.where(tail_T, 1.0, -0.25))
    drift = own.normal(0, noise) + own.normal(0, noise / 2, len(scale_T))
    return target_T + 10 / step + effect * scale_T + drift


def write_run(
    run: ArmRun,
    study: Study,
    validation: Validation,
    effect: float,
    *,
    steps: Sequence[int],
    weights: Sequence[Weights],
    keep: int,
) -> None:
    """Write ``run.json``, ``metrics.jsonl``, the target files and the exit code of a finished run."""
    loss = {"rule": "standard", "alpha": 0.15, "gamma": 0.5} | study.arms[run.arm]["loss"]
    buckets = Buckets(WINDOW)
    bounds = buckets.lower_bounds
    log = MetricsLog(run.folder)
    log.begin(0)
    counts = np.bincount(validation.bucket, minlength=len(buckets))
    weights_n = bucket_weights(
        *map(buckets.lower_bounds.new_tensor, (counts.tolist(), bounds.tolist())),
        threshold=THRESHOLD,
        alpha=0.0 if loss["rule"] == "standard" else loss["alpha"],
    )
    for step in steps:
        for one in weights:
            ce_T = losses_of(run, validation, effect, step, one).astype(np.float32)
            sums = [np.bincount(validation.bucket, ce_T, len(buckets)).tolist(), counts.tolist()]
            losses = ContextLosses.of(sums, buckets.labels(), bounds.tolist(), THRESHOLD)
            if one == "last":
                weight_of = dict(zip(buckets.labels(), weights_n.tolist(), strict=True))
                log.append(train_record(step, losses, weights=weight_of, tail_loss_mass=0.5))
            gain = ContextGain(0.1 - effect, losses.tail.targets, 1.0)
            about = {"steps": steps[-1], "weights": one, "context_gain": {"16": gain}, "windows": validation.set}
            log.append(validation_record(step, losses, **about))
            columns = {"bucket": validation.bucket, "document": validation.document, "place": validation.place}
            targets = TargetLosses(step, THRESHOLD, validation.set, ce_T, **columns, weights=one)
            write_target_losses(run.folder, targets, keep=keep)
    log.close()
    datasets = [{"path": str(validation.dataset), "fingerprint": validation.set.fingerprint}]
    config = {"loss": loss, "dataloader": {"seed": run.seed}, "debug": {"seed": run.start}}
    data = {"fingerprint": validation.set.fingerprint, "datasets": datasets}
    RunRecord(config, data, data, validation.set.fingerprint, {}, {}).write(run.folder)
    (run.folder / EXIT_CODE_FILE).write_text("0\n")
