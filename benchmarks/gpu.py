"""Everything that only a GPU can tell, in one run: correctness first, then the cost of a step.

Made for one GPU on a machine that may have an older torch and no network (:mod:`benchmarks.old_torch`): the wheels of
torchtitan and its dependencies are installed in a folder SITE, and the run starts in the repository's root::

    PYTHONPATH=.:SITE python3 -m benchmarks.gpu --out DIR

Writes ``gpu.txt`` (what is printed) and ``gpu.json`` (all of it, every step's time included) to DIR, after every part,
so that a run that is cut short leaves what it had. Exits with code 1 if a check failed. ``--device cpu --small`` runs
the same lines at toy size, except those that need CUDA, which it names.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import old_torch


class Report:
    """Collects results and keeps the two files up to date."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lines: list[str] = []
        self.results: dict[str, Any] = {"checks": [], "steps": []}

    def add(self, kind: str, result: dict[str, Any], text: str) -> None:
        self.results[kind].append(result)
        self.say(text)

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)
        (self.folder / "gpu.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        (self.folder / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.txt and gpu.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--models", nargs="+", default=["smollm2-135m", "llama3.2-1b"], help="shapes of benchmarks.step"
    )
    parser.add_argument("--seq-len", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of every side")
    parser.add_argument("--small", action="store_true", help="a toy model, in seconds; the timings mean nothing")
    args = parser.parse_args()
    if args.small:
        args.models, args.seq_len, args.rounds = ["tiny"], 256, 2

    is_old = old_torch.install()
    # These import torchtitan, which needs the stand-ins.
    from torchtitan.tools import utils

    from benchmarks import gpu_checks, step

    step.prepare_process(args.device)
    # The lm_head of an old torch computes in the dtype of its parameters (see benchmarks.old_torch).
    dtypes = {"dtype": "bfloat16" if is_old else "float32", "compute_dtype": "bfloat16"}
    report = Report(args.out)
    attention = "SDPA per document"
    if args.device == "cuda":
        attention = utils.get_cuda_flash_attention_impl() or "the FlashAttention 2 in torch"
    report.say(f"{step.device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, attention: {attention}")
    report.say(f"torchtitan helped by benchmarks.old_torch: {'yes' if is_old else 'no'}")

    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    for shape in args.models:
        report.say(f"\n{shape}, windows of {args.seq_len}")
        of_parts = gpu_checks.run_checks(shape, device, seq_len=args.seq_len)
        of_steps = gpu_checks.step_checks(shape, seq_len=args.seq_len, steps=30, **dtypes)
        for outcome in itertools.chain(of_parts, of_steps):
            verdict = {True: "passed", False: "FAILED", None: "not run"}[outcome.passed]
            result = {"model": shape, **dataclasses.asdict(outcome)}
            report.add("checks", result, f"{verdict:8} {outcome.name}: {outcome.detail}")
    for shape in args.models:
        result = step.compare(shape, seq_len=args.seq_len, rounds=args.rounds, **dtypes)
        report.add("steps", result, "\n" + step.table(result))
    failed = [check["name"] for check in report.results["checks"] if check["passed"] is False]
    report.say(f"\n{len(failed)} of {len(report.results['checks'])} checks failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
