"""Put a passage into running text, at an exact distance from the end of the prompt.

1. :class:`Filler` takes the words of a haystack from a random word on: first the words before the passage, then the
   words after the passage.
2. :meth:`Filler.after` finds the words after the passage. The search moves the last word, and then the first word,
   until the distance is exact.
3. :func:`exact_titan.evaluation.filling.fill` finds the words before the passage.

The words before the passage start at the same word at every distance, so the prompts begin with the same text.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from exact_titan.errors import InputError
from exact_titan.evaluation.haystacks import Prose, ends_sentence
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

_PARAGRAPH = "\n\n"
_CUT = " ..."
"""Mark of a filler. The last word of a filler seldom ends a sentence."""

_STARTS, _TRIES = 5, 6
"""Sentences that the filler after the passage may start with, and lengths that are tried from each."""

_TOLERANCE_TOKENS, _TOLERANCE = 4, 0.02
"""Largest error of a distance: the larger of a number of tokens and a share of the distance."""


@dataclass(frozen=True)
class Frame:
    """A prompt without its filler.

    Attributes:
        tokenizer: adds the template, and counts tokens.
        passage: the text that is placed.
        question: the end of the prompt's body.
        cloze: the first words of the answer.
    """

    tokenizer: PromptTokenizer
    passage: str
    question: str
    cloze: str

    def prompt(self, before: str, after: str) -> str:
        """Return the prompt with filler before and after the passage."""
        parts = [before and before + _CUT, self.passage, after and after + _CUT, self.question]
        return self.tokenizer.wrap(_PARAGRAPH.join(part for part in parts if part), self.cloze)

    def distance(self, after: str) -> int:
        """Return the number of tokens from the end of the passage to the end of the prompt."""
        prompt = self.prompt("", after)
        whole, passage = self.tokenizer.counts([prompt[prompt.index(self.passage) :], self.passage])
        return whole - passage

    def least_tokens(self) -> tuple[int, int]:
        """Return the number of tokens up to the end of the passage, and after the passage, without filler."""
        after = self.distance("")
        return self.tokenizer.count(self.prompt("", "")) - after, after


class Filler:
    """The filler of one context.

    Args:
        prose: the running text.
        start: index of the first word.
        tokens: tokens of the longest prompt.

    Attributes:
        words: the words, in the order of the text. The text repeats if it is shorter than twice the prompt.
        sizes: approximate tokens of each word before the passage, int64 ``[words before]``.
        names: the different words, without the punctuation around them.
    """

    def __init__(self, prose: Prose, start: int, tokens: int) -> None:
        repeats = -(-2 * tokens // int(prose.sizes.sum())) + 1
        sizes = np.roll(np.tile(prose.sizes, repeats), -start)
        before, whole = np.searchsorted(np.cumsum(sizes), [tokens, 2 * tokens]) + 1
        words = prose.words * repeats
        self.words = (words[start:] + words[:start])[:whole]
        self.sizes = sizes[:before]
        starts = (end for end in range(before, whole) if ends_sentence(self.words[end - 1]))
        self.names = {word.strip(".,;:!?\"'()“”‘’") for word in self.words}
        self._starts = list(islice(starts, _STARTS)) or [before]
        self._tokens_before = np.concatenate([[0], np.cumsum(sizes[:whole])])

    def before(self, words: int) -> str:
        """Return the first words of the filler before the passage."""
        return " ".join(self.words[:words])

    def after(self, frame: Frame, distance: int) -> str:
        """Return the filler after the passage that gives a distance.

        The filler is exact if one of the tried fillers is. Otherwise the filler is the best of them.

        Raises:
            InputError: if the distance is more than 4 tokens and more than 2 % wrong.
        """
        without = frame.distance("")
        best, error = "", abs(distance - without)
        for start in self._starts:
            words, measured = 0, without
            for _ in range(_TRIES):
                if error == 0:
                    return best
                words += self._words_of(start + words, distance - measured)
                after = " ".join(self.words[start : start + words])
                measured = frame.distance(after)
                if abs(distance - measured) < error:
                    best, error = after, abs(distance - measured)
        if error > max(_TOLERANCE_TOKENS, _TOLERANCE * distance):
            raise InputError(
                f"the haystack gives a distance of {distance} tokens only with an error of {error} tokens: name a "
                f"haystack with spaces between its words"
            )
        return best

    def _words_of(self, at: int, tokens: int) -> int:
        """Return how many words from ``at`` on have a number of tokens, at least one word. Negative: words before."""
        end = int(np.searchsorted(self._tokens_before, self._tokens_before[at] + tokens, side="left"))
        return end - at or (1 if tokens > 0 else -1)
