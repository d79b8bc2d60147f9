"""The files that one rank of many opens, and the time that its dataloader takes, for 8 to 1,024 simulated ranks.

A rank needs no other rank to know its windows. One process therefore simulates a rank of any number of ranks. The rank
is a third of the way through the ranks. The times are CPU times in milliseconds, so other programs of the machine do
not count, and waiting for a disk does not count either.

1. Steps. The side ``shards`` looks up the work of all windows of a step in the shards, as versions without
   ``<split>-work.bin`` did. The side ``file`` is the dataloader. The sides alternate, step by step, each with its own
   open shards. The first step of a side belongs to the start. The counted steps and the timed steps alternate. All
   pages are in the page cache. The bytes are those of read calls. Mapped files have page faults instead.
2. A start of the rank: the opening of the dataset and the distribution of the first step. Every machine has 8 ranks.
   ``before``: the side ``shards``, and every rank checks all shards. For a dataset without the file, the last columns
   have the rank's part of the reading of the shards.
3. Large datasets: the time of the distribution of a step over the most ranks, the time of a start, and the memory. The
   shards are empty files of the right size, and the work of the windows is random. The distribution opens no shard.

Example: python -m benchmarks.many_ranks
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.file_calls import FileCalls, counted
from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset import dataset as dataset_module
from exact_titan.dataset.manifest_checks import shard_name
from exact_titan.dataset.records import ShardRecord, SplitRecord
from exact_titan.dataset.work import compute_work, section, work_file
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.exposure import Buckets
from exact_titan.sampling.balance import attention_work, deal
from exact_titan.titan.loader import PackedDataLoader

WINDOW = 1024
RANKS_OF_A_MACHINE = 8
WINDOWS_OF_A_SHARD = 2000
"""Windows of a shard of a large dataset. A shard of 2^25 tokens has 2,048 windows of 16K."""


class FromShards(PackedDataLoader):
    """Looks up the work of the windows in the shards, as versions without the file of attention work did."""

    def _step(self, first: int) -> np.ndarray:
        assert self.rounds_per_step is not None
        size = self.rounds_per_step * self.dp_world_size * self.local_batch_size
        windows = [self.window_at(place) for place in range(first, first + size)]
        work = [attention_work(*one) for one in windows if one is not None]
        return first + deal(work, ranks=self.dp_world_size, batch=self.local_batch_size)


@dataclass
class Side:
    """One rank's loader, its own open shards, and the figures of its steps."""

    loader: PackedDataLoader
    open_shards: dataset_module._OpenShards = field(default_factory=lambda: dataset_module._OpenShards(256))
    calls: list[FileCalls] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = iter(self.loader)
        self.step()

    def step(self) -> None:
        dataset_module._OPEN_SHARDS = self.open_shards
        for _ in range(self.loader.rounds_per_step or 1):
            next(self.batches)

    def count(self) -> None:
        with counted() as calls:
            self.step()
        self.calls.append(calls)

    def time(self) -> None:
        begin = time.process_time()
        self.step()
        self.seconds.append(time.process_time() - begin)

    def row(self) -> str:
        counts = [(calls.opened.total(), calls.stats.total(), calls.read_bytes, calls.faults) for calls in self.calls]
        opens, stats, read, faults = (statistics.mean(column) for column in zip(*counts, strict=True))
        ms = 1000 * statistics.median(self.seconds)
        return f"{opens:>7,.1f} {stats:>6,.0f} {read:>6,.0f} {faults:>7,.0f} {ms:>8.2f}"


def loader_of(
    folder: Path, ranks: int, rounds: int, kind: type[PackedDataLoader] = PackedDataLoader
) -> PackedDataLoader:
    loader = kind(
        kind.Config(dataset_path=str(folder)),
        dp_world_size=ranks,
        dp_rank=ranks // 3,
        seq_len=WINDOW,
        local_batch_size=1,
    )
    loader.rounds_per_step = rounds
    return loader


def measure_steps(folder: Path, ranks: int, rounds: int, steps: int) -> str:
    """Return the row of the steps of a rank: opens, stats, bytes of reads, page faults and ms, for both sides."""
    sides = [Side(loader_of(folder, ranks, rounds, kind)) for kind in (FromShards, PackedDataLoader)]
    for _ in range(steps):
        for side in sides:
            side.count()
        for side in sides:
            side.time()
    return f"{ranks:>6,} {ranks * rounds:>8,} {'   '.join(side.row() for side in sides)}"


@contextmanager
def machine_of(ranks: int, rank: int = 0) -> Iterator[None]:
    """Let this process be one of the ranks of a machine."""
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]


def start(folder: Path, ranks: int, rounds: int, kind: type[PackedDataLoader], of_machine: int) -> PackedDataLoader:
    dataset_module._OPEN_SHARDS = dataset_module._OpenShards(256)
    with machine_of(of_machine):
        loader = loader_of(folder, ranks, rounds, kind)
    loader._step(0)
    return loader


def measure(call: Callable[[], object], repeats: int) -> tuple[FileCalls, float]:
    """Return the calls of one run, and the median milliseconds of others."""
    with counted() as calls:
        call()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return calls, 1000 * statistics.median(seconds)


def measure_start(folder: Path, ranks: int, rounds: int, repeats: int) -> str:
    """Return the row of the start of a rank, for both sides, and of its part of a dataset without the file."""
    cells = []
    for kind, of_machine in ((FromShards, 1), (PackedDataLoader, RANKS_OF_A_MACHINE)):
        calls, ms = measure(lambda k=kind, n=of_machine: start(folder, ranks, rounds, k, n), repeats)
        manifests = sum(count for path, count in calls.opened.items() if path.endswith("manifest.json"))
        read = calls.read_bytes / 1000
        cells.append(f"{manifests:>4} {calls.opened.total():>6,} {calls.stats.total():>6,} {read:>6,.0f} {ms:>8.1f}")
    shards = PackedDataset(folder).record.shards
    calls, ms = measure(lambda: compute_work(folder, shards[ranks // 3 :: ranks], WINDOW), repeats)
    return f"{ranks:>6,} {'   '.join(cells)}   {calls.opened.total():>7,} {ms:>8.1f}"


def write_large(folder: Path, windows: int) -> Path:
    """Write a dataset of many windows. Its shards are empty files of the right size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    work = work_file(folder, "train").open("wb")
    for index in range(-(-windows // WINDOWS_OF_A_SHARD)):
        count = min(WINDOWS_OF_A_SHARD, windows - index * WINDOWS_OF_A_SHARD)
        size = 8 * (count + 1) + 12 * count + 4 * count * (WINDOW + 1)
        with (folder / shard_name("train", index)).open("wb") as out:
            out.truncate(size)
        shards.append(ShardRecord(shard_name("train", index), size, f"{index:064x}", count, count * WINDOW, count))
        work.write(section(rng.integers(WINDOW, WINDOW**2, count), shards[-1], WINDOW))
    work.close()
    inputs = windows * WINDOW
    counts = [0] * len(Buckets(WINDOW))
    counts[-1] = inputs
    Manifest(
        sources=[],
        tokenizer=TokenizerRecord(name="none", sha256="", vocab_size=100_000, eos_id=0, eos_token="<eos>"),
        window=WINDOW,
        policy="concat",
        token_dtype="uint32",
        val_fraction=0.0,
        splits={"train": SplitRecord(windows, inputs, inputs, 0, 1, counts, shards, [1])},
    ).write(folder)
    return folder


def measure_large(folder: Path, windows: int, ranks: int, rounds: int, repeats: int) -> str:
    """Return the row of a large dataset: milliseconds of a step's distribution and of a start, and memory in MB."""
    write_large(folder, windows)
    _, start_ms = measure(lambda: start(folder, ranks, rounds, PackedDataLoader, RANKS_OF_A_MACHINE), repeats)
    tracemalloc.start()
    loader = start(folder, ranks, rounds, PackedDataLoader, RANKS_OF_A_MACHINE)
    loader._step(0)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    seconds = []
    for step in range(1, 4 * repeats + 1):
        begin = time.process_time()
        loader._step(step * ranks * rounds)
        seconds.append(time.process_time() - begin)
    mapped = work_file(folder, "train").stat().st_size / 1e6
    shards = len(loader.mixture.datasets[0].record.shards)
    step_ms = 1000 * statistics.median(seconds)
    return f"{windows:>12,} {shards:>8,} {step_ms:>9.2f} {start_ms:>9.1f} {memory:>12.1f} {mapped:>10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=4, help="microbatches of one window per rank and step")
    parser.add_argument("--shards", type=int, default=3000, help="shards of about 8 windows")
    parser.add_argument("--large", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="windows")
    parser.add_argument("--steps", type=int, default=9, help="counted and timed steps of each side")
    parser.add_argument("--small", action="store_true", help="a run of seconds; its figures have no meaning")
    args = parser.parse_args()
    if args.small:
        args.ranks, args.shards, args.large, args.steps = [8, 64], 60, [3000, 6000], 2

    with tempfile.TemporaryDirectory() as place:
        folder = write_dataset(
            Path(place) / "packed",
            window=WINDOW,
            windows=8 * args.shards,
            lengths=mixed_lengths(WINDOW),
            vocab_size=50_000,
            shard_tokens=7 * WINDOW + WINDOW // 2,
        )
        dataset = PackedDataset(folder)
        print(
            f"{len(dataset):,} windows of {WINDOW} in {len(dataset.record.shards):,} shards, {args.rounds} windows per "
            f"rank and step"
        )
        print(f"{'a step of a rank':<15}{'work from the shards':>38}{'work from the file':>41}")
        print(
            f"{'ranks':>6} {'windows':>8} " + f"{'opens':>7} {'stats':>6} {'bytes':>6} {'faults':>7} {'ms':>8}   " * 2
        )
        for ranks in args.ranks:
            print(measure_steps(folder, ranks, args.rounds, args.steps), flush=True)
        print(f"{'a start of a rank':<20}{'before':>21}{'now':>37}{'without the file':>20}")
        header = f"{'json':>4} {'opens':>6} {'stats':>6} {'KB':>6} {'ms':>8}   "
        print(f"{'ranks':>6} {header}{header}{'opens':>7} {'ms':>8}")
        for ranks in args.ranks:
            print(measure_start(folder, ranks, args.rounds, args.steps), flush=True)
        print(f"a dataset of many windows, {max(args.ranks):,} ranks")
        print(f"{'windows':>12} {'shards':>8} {'step, ms':>9} {'start, ms':>9} {'memory, MB':>12} {'mapped, MB':>10}")
        for windows in args.large:
            row = measure_large(Path(place) / str(windows), windows, max(args.ranks), args.rounds, args.steps)
            print(row, flush=True)


if __name__ == "__main__":
    main()
