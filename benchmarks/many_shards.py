"""A dataset of many shards: the time to open the dataset, to read a first window, and to read more in random order.

The shards are small, so the benchmark makes 10,000 shards in a minute. Only the number of shards affects the figures.
Every turn is a new process. The time of its imports does not count.

Example: python -m benchmarks.many_shards
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.synthetic import mixed_lengths, write_dataset

WINDOW = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        measure(args.measure)
        return
    print(f"windows of {WINDOW}, {args.repeats} turns, medians")
    for shards in args.shards:
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_dataset(
                Path(folder) / "packed",
                window=WINDOW,
                windows=2 * shards,
                lengths=mixed_lengths(WINDOW),
                vocab_size=50_000,
                # The writer closes a shard at the first window border after this size: after two windows.
                shard_tokens=WINDOW + WINDOW // 2,
            )
            rows = []
            for _ in range(args.repeats):
                command = [sys.executable, "-m", "benchmarks.many_shards", "--measure", str(dataset)]
                result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(tuple(map(float, result.stdout.split())))
            number, opened, window, later, files = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"{number:>7,.0f} shards: opened in {1000 * opened:7.1f} ms, a window {1000 * window:5.2f} ms, then "
                f"{1e6 * later:6.1f} µs each in random order, {files:.0f} files open",
                flush=True,
            )


def measure(folder: Path) -> None:
    """Print the number of shards, the seconds to open, for a first and for each later window, and the open files."""
    import numpy as np

    from exact_titan.dataset import PackedDataset

    before = len(os.listdir("/proc/self/fd"))
    begin = time.perf_counter()
    dataset = PackedDataset(folder)
    opened = time.perf_counter() - begin
    order = np.random.default_rng().permutation(len(dataset))[:2001].tolist()
    begin = time.perf_counter()
    dataset[order[0]]
    window = time.perf_counter() - begin
    begin = time.perf_counter()
    for k in order[1:]:
        dataset[k]
    later = (time.perf_counter() - begin) / max(1, len(order) - 1)
    print(len(dataset.record.shards), opened, window, later, len(os.listdir("/proc/self/fd")) - before)


if __name__ == "__main__":
    main()
