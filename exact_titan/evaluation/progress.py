"""The estimate before a generation, and the progress with the time left."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.examples import Example
from exact_titan.packing.progress import clock

SECONDS = 30.0
"""Time between two lines in a log."""


@dataclass(frozen=True)
class Work:
    """The tokens of a generation.

    Attributes:
        prefill: tokens of prompts that the engine computes, without the first tokens that a prompt shares with the
            prompt before it, and with the tokens of continuations.
        shared: tokens of prompts that are shared.
        decode: largest number of tokens to generate.
    """

    prefill: int = 0
    shared: int = 0
    decode: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.prefill + other.prefill, self.shared + other.shared, self.decode + other.decode)


def works(examples: Sequence[Example], *, chunk: int) -> list[Work]:
    """Return the work of every example, in the order of the engine.

    The shared tokens of two prompts are estimated from the shared characters.

    Args:
        examples: the examples in the order of the engine.
        chunk: the engine reuses the first tokens of the prompt before in multiples of this number.
    """
    found, before = [], ""
    for one in examples:
        same = len(os.path.commonprefix([before, one.prompt]))  # noqa: RUF071
        shared = one.tokens * same // max(1, len(one.prompt)) // chunk * chunk
        continued = sum(map(len, one.continuations)) * one.tokens // max(1, len(one.prompt))
        found.append(Work(one.tokens - shared + continued, shared, one.room))
        before = one.prompt
    return found


def estimate(work: Work, examples: int, speed: Speed | None) -> str:
    """Return one line about the tokens and the time of a generation."""
    line = f"{examples:,} examples, {work.prefill:,} tokens of prompts"
    line += f" ({work.shared:,} more are shared)" if work.shared else ""
    line += f", at most {work.decode:,} generated tokens"
    if speed is None:
        return f"{line}; the time is known after the first answers"
    seconds = work.prefill / speed.prefill + work.decode / speed.decode
    rates = f"{speed.prefill:,.0f} tokens/s of prompts and {speed.decode:,.0f} generated tokens/s"
    return f"{line}; at most {clock(seconds)} at {rates} (measured)"


class Progress:
    """Shows the answered examples and the time left on stderr.

    A terminal shows one moving line. A log gets a new line every 30 s. The time left is the time so far, scaled by the
    work that is left.

    Args:
        works: the work of every example that is left.
        speed: the measured speed, which weighs a token of a prompt against a generated token. None: 1 against 20.
    """

    def __init__(self, works: Sequence[Work], speed: Speed | None) -> None:
        prefill, decode = (1.0, 0.05) if speed is None else (speed.prefill, speed.decode)
        self._costs = [one.prefill / prefill + one.decode / decode for one in works]
        self._total, self._done, self._answered = sum(self._costs), 0.0, 0
        self._begin = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            layout = "answers: {percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=self._total, file=sys.stderr, bar_format=layout)

    def add(self, example: int) -> None:
        """Count the answer to the example with this index in ``works``."""
        self._done += self._costs[example]
        self._answered += 1
        if self._bar is not None or time.monotonic() - self._shown >= SECONDS:
            self._show()

    def close(self) -> None:
        """Leave the last line on the screen."""
        if self._bar is not None:
            self._show()
            self._bar.close()

    def _show(self) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._begin
        left = clock(seconds * (self._total - self._done) / self._done) if self._done else "?"
        text = f"{self._answered:,} of {len(self._costs):,} examples, {clock(seconds)}, {left} left"
        if self._bar is not None:
            self._bar.n = min(self._done, self._total)
            self._bar.set_description_str(text)
        else:
            share = 100 * self._done / self._total if self._total else 100
            print(f"answers: {share:3.0f} %, {text}", file=sys.stderr, flush=True)
