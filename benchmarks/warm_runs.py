"""Seconds of a run of one step: a new process against a fork of a warm process (:mod:`exact_titan.launch.warm`).

``exact-titan study run`` forks the runs of one process on the CPU. Both sides train the same step on the same random
dataset, in turns. The start of the warm process is measured apart, because a study starts the warm process once.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.launch.warm import WarmProcesses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_dataset(folder / "packed", window=512, windows=8, lengths=mixed_lengths(512), vocab_size=600)
        argv = ["--config", "quickstart", "--dataloader.dataset_path", str(data), "--training.steps", "1"]
        argv += ["--validator.no-enable", "--checkpoint.no-enable", "--metrics.no-enable_tensorboard"]
        begin = time.perf_counter()
        warm = WarmProcesses(threads=1)
        warm.call(time.time)
        print(f"start of the warm process: {time.perf_counter() - begin:.1f} s")
        seconds: dict[str, list[float]] = {"new process": [], "fork": []}
        for number in range(1 if args.small else args.rounds):
            seconds["new process"].append(_new_process([*argv, "--dump_folder", str(folder / f"new-{number}")]))
            seconds["fork"].append(
                _fork(warm, [*argv, "--dump_folder", str(folder / f"fork-{number}")], folder / "log")
            )
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.1f} s of {len(values)}")


def _new_process(argv: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "exact_titan.train", *argv], check=True, capture_output=True)
    return time.perf_counter() - begin


def _fork(warm: WarmProcesses, argv: list[str], log: Path) -> float:
    begin = time.perf_counter()
    run = warm.start(argv, log, {})
    while (code := run.poll()) is None:
        time.sleep(0.02)
    if code:
        raise RuntimeError(log.read_text(encoding="utf-8"))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
