"""The check of prompts of many lengths with a real tokenizer.

``python -m tests.evaluation.suites.ruler.lengths FOLDER…`` checks 1K to 32K with the tokenizers of the folders. The
command prints the smallest and the largest share of every length, and the time of an example.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from exact_titan.evaluation.answers import Answer
from exact_titan.evaluation.options import RulerOptions
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Request, find_suite

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def check_lengths(folder: Path, lengths: Sequence[int], examples: int = 1) -> dict[int, tuple[float, float]]:
    """Assert that prompts fill 98 % to 100 % of ``length - room``, and that copied references score 1 and silence 0.

    Returns:
        For every length the smallest and the largest share of ``length - room``.
    """
    tokenizer, suite = PromptTokenizer(folder), find_suite("ruler")
    extremes = {}
    for length in lengths:
        made = list(suite.prepare(Request(length, examples, 0, tokenizer, RulerOptions())).examples)
        assert len(made) == 11 * examples
        for one in made:
            assert one.tokens == tokenizer.count(one.prompt), one.id
            assert 0.98 * (length - one.room) <= one.tokens <= length - one.room, one.id
        copied = suite.score(made, {one.id: Answer(one.id, ", ".join(one.references)) for one in made})
        silent = suite.score(made, {one.id: Answer(one.id, "") for one in made})
        assert [one.values["accuracy"] for one in copied] == [1.0] * len(made)
        assert [one.values["accuracy"] for one in silent] == [0.0] * len(made)
        shares = [one.tokens / (length - one.room) for one in made]
        extremes[length] = (min(shares), max(shares))
    return extremes


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for size in LENGTHS:
            begin = time.process_time()
            least, most = check_lengths(Path(name), [size], examples=4)[size]
            seconds = (time.process_time() - begin) / 44
            print(
                f"{name} {size}: {100 * least:.2f} to {100 * most:.2f} %, {seconds:.3f} core s an example", flush=True
            )
