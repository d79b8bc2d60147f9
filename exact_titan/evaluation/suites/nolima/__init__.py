"""NoLiMa: a needle that shares no words with its question (arXiv 2502.05167). docs/nolima.md describes the tasks.

:mod:`material` reads needle sets (:mod:`needle_sets`) and books (:mod:`books`). :mod:`plan` orders the grid of
questions, books and depths. :mod:`prompts` makes the prompts, and :mod:`scoring` the scores. :mod:`tasks` has the
variants.
"""

from exact_titan.evaluation.suites.nolima.suite import NolimaSuite


def suite() -> NolimaSuite:
    """Return the suite."""
    return NolimaSuite()
