"""The lines about the rule in the header of a run. test_console.py tests the whole header of a run."""

import re
from types import SimpleNamespace

import pytest

from exact_titan.exposure import RULES
from exact_titan.titan.header import _rule, _weights
from exact_titan.titan.loss import ExactLoss

LINES = {
    "standard": (r"standard \(plain loss\), TAIL", "1 for every target"),
    "exact": ("exact, alpha 0.5, gamma 0.7, TAIL", "1 below the tail, WEIGHTS"),
    "normalized_exact": (
        "normalized_exact, alpha 0.5, gamma 0.7, TAIL, divided by the sum of the weights",
        "1 below the tail, WEIGHTS",
    ),
    "uniform": ("uniform, alpha 0.5, gamma 0, TAIL", "1 below the tail, 16-31 1.500, 32-64 1.500"),
    "packed_position": (
        "packed_position, alpha 0.5, gamma 0.7, TAIL",
        "by the index in the window: 1 below the tail, WEIGHTS",
    ),
    "random": ("random, alpha 0.5, gamma 0.7, TAIL", r"by a drawn bucket \(seed 9\): 1 below the tail, WEIGHTS"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_header_says_the_rule_in_force(dataset, name):
    config = ExactLoss.Config(dataset_path=str(dataset.folder), rule=name, alpha=0.5, gamma=0.7, _seed=9)
    run = SimpleNamespace(loss_fn=config.build())
    rule, weights = (
        pattern.replace("TAIL", r"the tail starts at 16 tokens of context, \d\d\.\d% of the targets").replace(
            "WEIGHTS", r"16-31 1\.\d{3}, 32-64 1\.\d{3}"
        )
        for pattern in LINES[name]
    )
    assert re.fullmatch(rule, _rule(run))
    assert re.fullmatch(weights, _weights(run))
