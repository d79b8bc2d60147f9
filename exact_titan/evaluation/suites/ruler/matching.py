"""The published scores of RULER: the references in the answer, without regard to case.

The rules are those of NVIDIA/RULER, ``scripts/eval/synthetic/constants.py`` and ``scripts/eval/evaluate.py``.
"""

import re
from collections.abc import Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f]")


def string_match_all(text: str, references: Sequence[str]) -> float:
    """Return the share of the references that occur in a text, 0 to 1."""
    text = _clean(text)
    return sum(one.lower() in text for one in references) / len(references)


def string_match_part(text: str, references: Sequence[str]) -> float:
    """Return 1 if at least one reference occurs in a text, else 0."""
    text = _clean(text)
    return float(any(one.lower() in text for one in references))


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\n", text.strip()).strip().lower()
