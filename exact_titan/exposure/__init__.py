"""The method of EXACT (arXiv 2605.10544) in plain torch.

1. :mod:`context` computes the effective context of every target and the bucket of the context.
2. :mod:`counter` counts the supervised targets per bucket during training.
3. :mod:`allocation` computes the weight of every bucket from the counts.
4. :mod:`rules` gives every target a slot and every slot a weight, under each rule of the paper's ablation.

Words: the *effective context* of a target is the number of visible tokens of the same document before the target. A
target is *supervised* if the target has a label. The *tail* is the set of buckets with a context of at least the
threshold.

The package imports torch and no other package of exact_titan.
"""

from exact_titan.exposure.allocation import (
    bucket_weights,
    check_allocation,
    default_threshold,
    tail_mass,
)
from exact_titan.exposure.context import Buckets, effective_context
from exact_titan.exposure.counter import ExposureCounter, prior_counts
from exact_titan.exposure.rules import RULES, Rule, RuleName, TargetCounts, Targets, find_rule

__all__ = [
    "RULES",
    "Buckets",
    "ExposureCounter",
    "Rule",
    "RuleName",
    "TargetCounts",
    "Targets",
    "bucket_weights",
    "check_allocation",
    "default_threshold",
    "effective_context",
    "find_rule",
    "prior_counts",
    "tail_mass",
]
