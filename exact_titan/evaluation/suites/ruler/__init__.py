"""RULER: retrieval, tracking and counting in synthetic contexts of any length (arXiv 2404.06654).

The generators are our own, by the rules of NVIDIA/RULER (Apache-2.0), commit c3f5e3b. ``docs/ruler.md`` lists the
differences.
"""

from exact_titan.evaluation.suites.ruler.suite import RulerSuite


def suite() -> RulerSuite:
    """Return the suite."""
    return RulerSuite()
