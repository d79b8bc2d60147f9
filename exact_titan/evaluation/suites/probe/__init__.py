"""The evidence probe: how much does the evidence in the context help the right answer, by distance and length?

1. :mod:`questions` makes passages that bind four values to four keys, and a cloze question for each key. The evidence
   is the passage with the right values. The distractor is the same passage with other values of the same type.
2. :mod:`placing` puts the passage into filler text, at a distance from the end of the prompt: 128, 256, 512 … tokens.
3. :mod:`suite` pairs the likelihoods of the choices with the evidence and with the distractor. The difference of the
   margins is the context margin.

The probe needs likelihoods only, so it measures base models too.
"""

from exact_titan.evaluation.suites.probe.suite import ProbeSuite


def suite() -> ProbeSuite:
    """Return the suite ``probe``."""
    return ProbeSuite()
