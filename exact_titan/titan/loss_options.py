"""The options of the loss, the checks of their values, and the datasets that give the bucket counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError, did_you_mean
from exact_titan.exposure import RULES, Buckets, Rule, RuleName, check_allocation, default_threshold, find_rule
from exact_titan.exposure.allocation import ALPHA, EPS, GAMMA, MIN_COUNT
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.cross_entropy import BucketCrossEntropy
from exact_titan.titan.layout import shards_to_check

_RULE_HELP = f"Weighting rule of the targets: {', '.join(f'{rule.name} ({rule.summary})' for rule in RULES.values())}."

NEEDS_OWN_TRAINER = (
    "this rule needs exact_titan's own trainer (python -m exact_titan.train): choose another rule, such as exact"
)


@dataclass(kw_only=True, slots=True)
class LossOptions(ChunkedLossWrapper.Config):
    """The options of the loss, ``ExactLoss.Config``."""

    # The import of exact_titan.titan.loss sets the owner. With an inherited owner build() would return torchtitan's own
    # loss without a warning.
    _owner: ClassVar[type | None] = None

    loss_fn: BaseLoss.Config = field(default_factory=BucketCrossEntropy.Config)

    dataset_path: str = ""
    """Packed dataset whose training split gives the bucket counts for the weights. Or several datasets, mixed as in
    the dataloader. Empty: the datasets of the dataloader."""

    rule: Annotated[RuleName, tyro.conf.arg(help=_RULE_HELP)] = "exact"

    alpha: float = ALPHA
    """Mean extra weight of the tail's targets (the paper's value)."""

    gamma: float = GAMMA
    """Exponent of the inverse bucket frequency (the paper's value). 0: all targets of the tail have one weight."""

    threshold: int | None = None
    """First effective context of the tail, in tokens. None: a quarter of the window, as in the paper."""

    eps: float = EPS
    """Number added to the share of a bucket before the inversion (the paper does not state the value)."""

    min_count: int = MIN_COUNT
    """A tail bucket with fewer targets than this gets the tail's mean weight, 1 + alpha."""

    refresh_steps: int = 0
    """Number of steps after which the weights are recomputed from the targets counted in training. 0: never."""

    # torchtitan leaves names with an underscore out when it writes a config down.
    _mixture: Annotated[Mixture | None, tyro.conf.Suppress] = field(default=None, repr=False, compare=False)
    """The datasets of dataset_path, if they are open already (:func:`open_counts`)."""

    _changed: Annotated[bool, tyro.conf.Suppress] = field(default=False, repr=False, compare=False)
    """The checkpoint of a resume was trained with other options of the loss. Set by preflight."""

    _seed: Annotated[int, tyro.conf.Suppress] = field(default=0, repr=False, compare=False)
    """Seed of the order of the windows, for a rule with draws. Set by preflight."""


def open_counts(config: LossOptions, *, manifests: Mapping[Path, Manifest] | None = None) -> Mixture:
    """Open the datasets that give the bucket counts for the weights, if the config does not carry these datasets.

    The training splits are counted.

    Args:
        config: config of the loss.
        manifests: manifests that the caller has read already, by folder.

    Raises:
        InputError: if ``dataset_path`` is empty, or if a dataset is missing or incomplete.
    """
    if not config.dataset_path:
        raise InputError("loss.dataset_path is empty: name the packed dataset whose bucket counts give the weights")
    mixture = config._mixture
    if mixture is None or (mixture.dataset_path, mixture.split) != (config.dataset_path, "train"):
        mixture = Mixture(config.dataset_path, manifests=manifests, checked=shards_to_check())
    return mixture


def checked_rule(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        InputError: if there is no such rule. The message names all rules.
    """
    try:
        return find_rule(name)
    except ValueError as error:
        raise InputError(f"loss.{error}{did_you_mean(name, RULES)}") from None


def check_config(config: LossOptions, *, window: int) -> int:
    """Refuse option values outside the definition of the method. Return the threshold of the run, in tokens.

    Raises:
        InputError: naming the option.
    """
    checked_rule(config.rule)
    threshold = default_threshold(window) if config.threshold is None else config.threshold
    if not 0 < threshold <= Buckets(window).lower_bounds[-1]:
        raise InputError(
            f"loss.threshold is {threshold}: with a window of {window} tokens the tail must start between 1 and "
            f"{Buckets(window).lower_bounds[-1]}, the last bucket's lower bound"
        )
    if config.refresh_steps < 0:
        raise InputError(f"loss.refresh_steps is {config.refresh_steps}: give a number of steps, or 0 for never")
    try:
        check_allocation(
            alpha=config.alpha, gamma=config.gamma, eps=config.eps, threshold=threshold, min_count=config.min_count
        )
    except ValueError as error:
        raise InputError(f"loss.{error}") from None
    return threshold
