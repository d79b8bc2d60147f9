"""The cost of the SHA-256 of a checkpoint's files: in a save, and in the comparison before a load.

The benchmark saves one state with PyTorch's writer and with the writer of this package in turns. One process writes one
file, as every rank of a run does. A save is complete when its files are on the disk (fsync). The comparison reads the
files from the page cache, because the load that follows reads them from there as well.

Example: python -m benchmarks.checkpoint_digests --gib 2
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from exact_titan.runs.checkpoint_verification import check_contents
from exact_titan.titan.checkpoint_writer import CheckpointWriter

_TENSORS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2, help="size of the state of the process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    state = {str(n): torch.randn(int(args.gib * 2**28 / _TENSORS)) for n in range(_TENSORS)}
    seconds: dict[str, list[tuple[float, float]]] = {"PyTorch's writer": [], "with SHA-256": [], "comparison": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary) / "step-1"
        for turn in range(args.repeats):
            sides = ["PyTorch's writer", "with SHA-256"]
            for side in sides if turn % 2 else sides[::-1]:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)
                os.sync()
                writer = (
                    CheckpointWriter(folder, name=folder, record=None)
                    if side == "with SHA-256"
                    else FileSystemWriter(folder)
                )
                seconds[side].append(timed(lambda writer=writer: dcp.save(state, storage_writer=writer, no_dist=True)))
                if side == "with SHA-256":
                    seconds["comparison"].append(timed(lambda: check_contents(folder)))
    print(f"{args.gib:g} GiB, {args.repeats} turns, medians, {len(os.sched_getaffinity(0))} cores")
    for side, values in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{side:<17} {wall:6.2f} s, {cpu / args.gib:5.2f} s of a core per GiB")


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of ``act``, and the seconds of CPU time over all threads."""
    begin, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - begin, time.process_time() - cpu


if __name__ == "__main__":
    main()
