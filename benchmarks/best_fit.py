"""The packing policies on document lengths alone, in one thread: time, padding, documents cut and peak memory.

The document lengths are log-normal. The benchmark has no tokens, because a policy reads only lengths. Each policy runs
in a separate process, so the peak memory is the peak memory of this policy.

Example: python -m benchmarks.best_fit --documents 10000000 --seq-len 16384 --median 800
"""

import resource
import time
from multiprocessing import get_context

import numpy as np
import tyro

from exact_titan.dataset.policies import POLICIES, lay_out

BLOCK = 2**16


def main(documents: int = 10_000_000, seq_len: int = 16384, median: float = 800.0, spread: float = 1.2) -> None:
    """Lay out documents of random lengths with every policy.

    Args:
        documents: Number of documents.
        seq_len: Window length in tokens.
        median: Median of the document lengths, in tokens.
        spread: Standard deviation of the lengths' logarithm.
    """
    print(f"{documents:,} documents, median {median:,.0f} tokens, spread {spread}, windows of {seq_len}", flush=True)
    for policy in POLICIES:
        process = get_context("spawn").Process(target=measure, args=(policy, documents, seq_len, median, spread))
        process.start()
        process.join()


def measure(policy: str, documents: int, seq_len: int, median: float, spread: float) -> None:
    """Measure one policy in this process and print the result."""
    draw = np.random.default_rng(0)
    lengths_D = np.empty(documents, dtype=np.int64)
    for start in range(0, documents, BLOCK):  # draw in blocks, so the draw does not set the peak
        block = lengths_D[start : start + BLOCK]
        block[:] = np.maximum(2, draw.lognormal(np.log(median), spread, len(block)))
    before = peak_mib()
    cut = windows = 0
    begin = time.perf_counter()
    for window in lay_out(policy, seq_len, lengths_D):
        windows += 1
        # Count a cut document at its last segment.
        cut += sum(first > 0 and first + inputs == lengths_D.item(document) - 1 for document, first, inputs in window)
    seconds = time.perf_counter() - begin
    padding = 1 - (int(lengths_D.sum()) - documents) / (windows * seq_len)
    print(
        f"{policy}: {seconds:.1f} s, {1e6 * seconds / documents:.2f} µs per document; {windows:,} windows, "
        f"padding {100 * padding:.3f} %, {cut:,} documents cut ({100 * cut / documents:.2f} %); "
        f"peak memory {peak_mib() - before:.0f} MiB above the memory of the lengths",
        flush=True,
    )


def peak_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
