"""Speed of the transformers engine of an evaluation: data types and batches in turns.

Every turn loads a fresh engine and calls its own measurement, the one of the estimate before a generation: a prompt of
256 tokens, and four generated tokens for every prompt of the batch.

Example: OMP_NUM_THREADS=1 python -m benchmarks.evaluation_engine SmolLM2-135M
"""

import statistics
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro
from tyro.conf import Positional

from exact_titan.evaluation.engine_options import DEFAULTS
from exact_titan.evaluation.engines import make_engine


def main(
    model: Positional[Path],
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    batches: tuple[int, ...] = (1, 8),
    repeats: int = 5,
) -> None:
    """Measure prefill and generation.

    Args:
        model: Hugging Face folder.
        dtypes: Data types of the weights.
        batches: Numbers of prompts that are answered together.
        repeats: Number of turns. A turn measures every side once.
    """
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(repeats):
        for dtype, batch in product(dtypes, batches):
            engine = make_engine(model, replace(DEFAULTS, dtype=dtype, batch=batch))
            speed = engine.measure()
            assert speed is not None
            found[dtype, batch].append((speed.prefill, speed.decode))
            engine.close()
    print(
        f"{model}, {torch.get_num_threads()} threads, medians of {repeats} turns, tokens/s over all prompts of a batch"
    )
    print(f"{'dtype':>8} {'batch':>5} {'prefill':>9} {'generation':>11}")
    for (dtype, batch), speeds in found.items():
        prefill, decode = (statistics.median(one) for one in zip(*speeds, strict=True))
        print(f"{dtype:>8} {batch:>5} {prefill:>9.0f} {decode:>11.1f}")


if __name__ == "__main__":
    tyro.cli(main)
