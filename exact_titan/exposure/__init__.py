"""The method, in plain torch: measure effective context, count it, weigh it. Imports nothing of the other rooms."""

from exact_titan.exposure.allocation import (
    Rule,
    bucket_weights,
    check_allocation,
    default_threshold,
    rule_weights,
    tail_mass,
)
from exact_titan.exposure.context import Buckets, effective_context
from exact_titan.exposure.counter import ExposureCounter

__all__ = [
    "Buckets",
    "ExposureCounter",
    "Rule",
    "bucket_weights",
    "check_allocation",
    "default_threshold",
    "effective_context",
    "rule_weights",
    "tail_mass",
]
