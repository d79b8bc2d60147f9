"""The method of EXACT (arXiv 2605.10544) in plain torch.

1. :mod:`context` computes the effective context of every target and the bucket of the context.
2. :mod:`counter` counts the supervised targets per bucket during training.
3. :mod:`allocation` computes the weight of every bucket from the counts.

Words: the *effective context* of a target is the number of visible tokens of the same document before the target. A
target is *supervised* if the target has a label. The *tail* is the set of buckets with a context of at least the
threshold.

The package imports torch and no other package of exact_titan.
"""

from exact_titan.exposure.allocation import (
    Rule,
    bucket_weights,
    check_allocation,
    default_threshold,
    rule_weights,
    tail_mass,
)
from exact_titan.exposure.context import Buckets, effective_context
from exact_titan.exposure.counter import ExposureCounter, prior_counts

__all__ = [
    "Buckets",
    "ExposureCounter",
    "Rule",
    "bucket_weights",
    "check_allocation",
    "default_threshold",
    "effective_context",
    "prior_counts",
    "rule_weights",
    "tail_mass",
]
