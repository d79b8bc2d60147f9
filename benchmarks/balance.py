"""Balance of the attention work of simulated ranks, with the windows of a step in order and balanced.

Every rank has the dataloader of a training run. The attention work of a rank is the sum of the squared document lengths
in its batches. The benchmark prints three figures:

1. The work of a whole step on the heaviest rank over the mean rank, as the mean over the steps.
2. The work of the microbatches on the heaviest rank over the mean rank, summed over all microbatches. All ranks wait
   for the heaviest rank in every microbatch.
3. The median time of a rank's loader for a whole step, with the reading of its windows.

Example: python -m benchmarks.balance packed/books-16k
"""

import statistics
import time
from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from tyro.conf import Positional

from exact_titan.dataset import PackedDataset
from exact_titan.titan.loader import PackedDataLoader

# Windows of a microbatch, microbatches of a rank in a step.
STEPS = ((1, 1), (1, 2), (1, 4), (1, 16), (2, 2), (4, 1), (4, 4))


def main(dataset: Positional[Path], ranks: int = 8, epochs: int = 20) -> None:
    """Distribute the windows of a packed dataset over simulated ranks.

    Args:
        dataset: Packed dataset. The benchmark reads its training split.
        ranks: Number of ranks.
        epochs: Number of epochs, rounded up to whole steps.
    """
    windows = len(PackedDataset(dataset))
    print(f"{dataset}: {windows} windows, {ranks} ranks; heaviest over mean rank")
    print(f"{'batch':>5} {'rounds':>6} {'step':>24} {'microbatch':>24} {'loader, ms per step':>24}")
    print(f"{'':>12} " + f"{'in order':>14} {'balanced':>9} " * 3)
    for batch, rounds in STEPS:
        steps = -(-epochs * windows // (ranks * batch * rounds))
        figures = [measure(dataset, ranks, batch, rounds, steps, balance) for balance in (False, True)]
        cells = (f"{in_order:>14.3f} {balanced:>9.3f}" for in_order, balanced in zip(*figures, strict=True))
        print(f"{batch:>5} {rounds:>6} {' '.join(cells)}", flush=True)


def measure(
    dataset: Path, ranks: int, batch: int, rounds: int, steps: int, balance: bool
) -> tuple[float, float, float]:
    """Return heaviest over mean rank, by step and by microbatch, and a loader's milliseconds for a step."""
    seq_len = PackedDataset(dataset).window
    work_RSM = np.empty((ranks, steps, rounds), dtype=np.int64)
    seconds = []
    for rank in range(ranks):
        config = PackedDataLoader.Config(dataset_path=str(dataset), balance=balance)
        loader = config.build(dp_world_size=ranks, dp_rank=rank, seq_len=seq_len, local_batch_size=batch)
        # With None, the loader distributes the windows in order and does not look up their work.
        loader.rounds_per_step = rounds if balance else None
        batches = iter(loader)
        for step in range(steps):
            begin = time.perf_counter()
            borders = [inputs["cu_seqlens"] for inputs, _ in islice(batches, rounds)]
            seconds.append(time.perf_counter() - begin)
            work_RSM[rank, step] = [int((cu_seqlens.diff().long() ** 2).sum()) for cu_seqlens in borders]
    by_step = work_RSM.sum(axis=2)
    step_ratio = (by_step.max(axis=0) / by_step.mean(axis=0)).mean()
    microbatch_ratio = work_RSM.max(axis=0).sum() / work_RSM.mean(axis=0).sum()
    return step_ratio, microbatch_ratio, 1000 * statistics.median(seconds)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
