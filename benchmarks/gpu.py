"""All GPU measurements in one run: correctness, the cost of a step, and the error of the step's plan.

The script needs one GPU. The machine may have an older torch and no network (:mod:`benchmarks.old_torch`). Install the
wheels of torchtitan and its dependencies in a folder SITE, and start the script in the repository's root::

    PYTHONPATH=.:SITE python3 -m benchmarks.gpu --out DIR

The script runs these parts for every model:

1. Compare the time and memory of the steps, compiled and eager: with selective activation checkpointing, with none, and
   with none on shorter documents. Count the compiled graphs.
2. Compare the plan of a step with the step, compiled and eager.
3. Check the parts of a step.
4. Time the attention kernels.
5. Check whole steps, compiled and eager.
6. Compare the losses of compiled and eager steps (:mod:`benchmarks.gpu_compiled`).

``--parts`` selects the parts: ``steps`` (1), ``plans`` (2), ``checks`` (3 to 5), ``losses`` (6).

The script writes ``gpu.txt`` (the printed text) and ``gpu.json`` (all results, with the time of every step) to DIR. The
script updates both files after every part, so an interrupted run keeps its results. If a part fails, the script reports
the failure, runs the other parts, and exits with code 1. ``--device cpu --small`` runs the same code at toy size. The
script then names the checks that need CUDA and does not run these checks.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import old_torch

PARTS = ("steps", "plans", "checks", "losses")


class Report:
    """Collects the results, prints the results, and updates the two files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.begun = time.monotonic()
        self.lines: list[str] = []
        self.checks: list[dict[str, Any]] = []
        self.attention: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.plans: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)
        results = {"checks": self.checks, "attention": self.attention, "steps": self.steps, "plans": self.plans}
        (self.folder / "gpu.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        (self.folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def part(self, name: str) -> None:
        """Report the start of a part with the seconds of the parts before it."""
        self.say(f"\n--- {name}, after {time.monotonic() - self.begun:.0f} s")

    def check(self, model: str, outcomes: Iterable[Any]) -> None:
        """Report every outcome when its check ends."""
        try:
            for outcome in outcomes:
                self.checks.append({"model": model, **dataclasses.asdict(outcome)})
                verdict = {True: "passed", False: "FAILED", None: "not run"}[outcome.passed]
                self.say(f"{verdict:8} {outcome.name}: {outcome.detail}")
        except Exception:
            self.failure(model, "setting up the checks")

    def failure(self, model: str, part: str) -> None:
        """Report the current exception as a failed check."""
        self.checks.append({"model": model, "name": part, "passed": False, "detail": traceback.format_exc()})
        self.say(f"FAILED   {part}: {traceback.format_exc()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.txt and gpu.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--models", nargs="+", default=["smollm2-135m", "llama3.2-1b"], help="model shapes of benchmarks.step"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--seq-len", type=int, default=16_384)
    parser.add_argument(
        "--rounds", type=int, default=30, help="timed steps of every side, and rounds of the attention timing"
    )
    parser.add_argument(
        "--small", action="store_true", help="a toy model; the run takes seconds, and its timings have no meaning"
    )
    args = parser.parse_args()
    if args.small:
        args.models, args.seq_len, args.rounds = ["tiny"], 256, 2

    is_old = old_torch.install()
    # These modules import torchtitan. torchtitan needs the stand-ins.
    from benchmarks import gpu_checks, gpu_compiled, plan, step
    from exact_titan.titan.model.attention import choose, describe

    step.prepare_process(args.device)
    # With an old torch, lm_head computes in the dtype of its parameters (see benchmarks.old_torch).
    dtypes = {"dtype": "bfloat16" if is_old else "float32", "compute_dtype": "bfloat16"}
    report = Report(args.out)
    report.say(f"{step.device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    report.say(f"torchtitan with the stand-ins of benchmarks.old_torch: {'yes' if is_old else 'no'}")

    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    for shape in args.models:
        steps = [("selective", step.LONGEST), ("none", step.LONGEST), ("none", 0.25)] if "steps" in args.parts else []
        for kind, longest in steps:
            report.part(f"{shape}, windows of {args.seq_len}: steps, {kind} activation checkpointing")
            options = {"checkpointing": kind, "compiled": True, "longest": longest, **dtypes}
            try:
                report.steps.append(step.compare(shape, seq_len=args.seq_len, rounds=args.rounds, **options))
                report.say(step.table(report.steps[-1]))
            except Exception:
                report.failure(shape, f"comparing the steps, {kind} activation checkpointing")
        plans = itertools.product(("selective", "full"), (True, False)) if "plans" in args.parts else []
        for kind, compiled in plans:
            report.part(f"{shape}: the plan, {kind} activation checkpointing, {'compiled' if compiled else 'eager'}")
            options = {"seq_len": args.seq_len, "compiled": compiled, **dtypes}
            try:
                report.plans.append(plan.compare_shape(shape, kind, **options))
                report.say(plan.table([report.plans[-1]]))
            except Exception:
                report.failure(shape, f"planning, {kind} activation checkpointing")
    for shape in args.models if "checks" in args.parts else []:
        report.part(f"{shape}: checks of the parts")
        report.check(shape, gpu_checks.part_checks(shape, device, seq_len=args.seq_len))
        report.part(f"{shape}: attention")
        try:
            report.attention.append(gpu_checks.time_attention(shape, device, seq_len=args.seq_len, rounds=args.rounds))
            report.say(gpu_checks.attention_table(report.attention[-1]))
        except Exception:
            report.failure(shape, "timing attention")
        for compiled in (False, True):
            report.part(f"{shape}: checks of {'compiled' if compiled else 'eager'} steps")
            options = {"seq_len": args.seq_len, "steps": 30, "compiled": compiled, **dtypes}
            report.check(shape, gpu_checks.step_checks(shape, **options))
    for shape in args.models if "losses" in args.parts else []:
        for kind in ("selective", "full"):
            report.part(f"{shape}: compiled against eager, {kind} activation checkpointing")
            options = {"seq_len": args.seq_len, "checkpointing": kind, **dtypes}
            report.check(shape, gpu_compiled.compiled_checks(shape, **options))
    report.say(f"\nattention in the steps: {describe(choose('auto'))}")
    failed = sum(check["passed"] is False for check in report.checks)
    report.part("end")
    report.say(f"\n{failed} of {len(report.checks)} checks failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
