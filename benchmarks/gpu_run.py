"""Whole runs on a GPU: train, validate, save in the background, stop, resume. The lines of the screen are printed.

The script needs one GPU. As for :mod:`benchmarks.gpu`, the machine may have an older torch and no network::

    PYTHONPATH=.:SITE python3 -m benchmarks.gpu_run --out DIR

1. A compiled run of 12 steps, with a validation and a checkpoint every 4 steps. A validation measures the last weights
   and their moving average, both with the context gain beyond an eighth of the window.
2. The same run, with a stop file after step 6 at the earliest, and then resumed to its end.

The script compares the records of both runs (``metrics.jsonl``): the same steps once, in order, and the plain
cross-entropies within 1 %. FlashAttention's gradients are not bit-equal from run to run. The script writes ``run.txt``,
``run.json`` and ``metrics.jsonl`` to DIR. ``--device cpu --small`` runs the same code at toy size.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import old_torch

STEPS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a toy model; the runs take seconds")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shape, seq_len = ("tiny", 256) if args.small else ("smollm2-135m", 16_384)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        old_torch.install()
        options = _options(folder, shape, seq_len, args.device)
        text = [_train(options, folder / "whole")]
        text += [_train(options, folder / "stopped", stop_after=6), _train(options, folder / "stopped")]
        (args.out / "run.txt").write_text("\n".join(text), encoding="utf-8")
        for name in ("run.json", "metrics.jsonl"):
            shutil.copyfile(folder / "stopped" / name, args.out / name)
        verdict = _compare(folder / "whole", folder / "stopped")
    print(verdict)
    return 0 if verdict.startswith("passed") else 1


def _options(folder: Path, shape: str, seq_len: int, device: str) -> list[str]:
    from benchmarks.step import SHAPES
    from benchmarks.synthetic import mixed_lengths, write_dataset

    dataset = write_dataset(
        folder / "packed",
        window=seq_len,
        windows=64,
        lengths=mixed_lengths(seq_len),
        vocab_size=SHAPES[shape]["vocab_size"],
    )
    options = [
        "--config",
        "from_scratch",
        "--dataloader.dataset_path",
        str(dataset),
        "--training.seq_len",
        str(seq_len),
    ]
    for name, value in SHAPES[shape].items():
        options += [f"--architecture.{name}", str(value)]
    dtype = "bfloat16" if device == "cuda" else "float32"
    options += ["--training.dtype", dtype, "--training.mixed_precision_param", dtype]
    options += ["--training.steps", str(STEPS), "--metrics.log_freq", "1", "--lr_scheduler.warmup_steps", "4"]
    options += ["--checkpoint.interval", "4", "--validator.freq", "4", "--validator.steps", "2"]
    options += ["--validator.context_gain", str(seq_len // 8), "--ema.decay", "0.5"]
    # A compiler of the CPU would take minutes, and this script is not for its speed.
    backend = "inductor" if device == "cuda" else "aot_eager"
    options += ["--compile.enable", "--compile.backend", backend]
    return [*options, "--validator.dataloader.split", "train", "--debug.seed", "0"]


def _train(options: list[str], run: Path, *, stop_after: int | None = None) -> str:
    """Run ``exact_titan.train`` in a process of its own, and return the printed lines."""
    command = [sys.executable, "-c", "from benchmarks import old_torch; old_torch.install(); "]
    command[-1] += "from exact_titan import train; train.main()"
    process = subprocess.Popen(
        [*command, *options, "--dump_folder", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [f"$ exact_titan.train … --dump_folder {run.name}"]
    begin = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
        if stop_after is not None and line.startswith(f"step {stop_after}/"):
            (run / "stop").touch()
    lines.append(f"exit code {process.wait()}, {time.monotonic() - begin:.1f} s\n")
    return "\n".join(lines)


def _compare(whole: Path, stopped: Path) -> str:
    whole_records, stopped_records = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for run in (whole, stopped)
    )
    places = [[(record["kind"], record["step"]) for record in records] for records in (whole_records, stopped_records)]
    if places[0] != places[1]:
        return f"FAILED: the records are {places[0]} and {places[1]}"
    largest = max(
        abs(one["cross_entropy"] / other["cross_entropy"] - 1)
        for one, other in zip(whole_records, stopped_records, strict=True)
    )
    verdict = "passed" if largest < 0.01 else "FAILED"
    return f"{verdict}: {len(places[0])} records in order, cross-entropies within {100 * largest:.3f} %"


if __name__ == "__main__":
    sys.exit(main())
