"""The English words of RULER's keys and word lists, from the package wonderwords, as RULER takes them."""

import hashlib
from dataclasses import dataclass
from functools import cache

from exact_titan.errors import InputError


@dataclass(frozen=True)
class Vocabulary:
    """English words.

    Attributes:
        adjectives: sorted adjectives.
        nouns: sorted nouns.
        words: sorted nouns, adjectives and verbs, without repeats.
        version: version of wonderwords.
        sha256: digest of the words.
    """

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    words: tuple[str, ...]
    version: str
    sha256: str


@cache
def read_vocabulary() -> Vocabulary:
    """Return the words of the installed wonderwords.

    Raises:
        InputError: if wonderwords is not installed.
    """
    try:
        import wonderwords
    except ImportError:
        raise InputError(
            "ruler takes its words from the package wonderwords: pip install 'exact-titan[eval]'"
        ) from None
    source = wonderwords.RandomWord()
    adjectives, nouns, verbs = (
        tuple(sorted(set(source.filter(include_categories=[kind])))) for kind in ("adjective", "noun", "verb")
    )
    words = tuple(sorted({*adjectives, *nouns, *verbs}))
    digest = hashlib.sha256("\n".join([*adjectives, "", *nouns, "", *words]).encode("utf-8")).hexdigest()
    return Vocabulary(adjectives, nouns, words, wonderwords.__version__, digest)
