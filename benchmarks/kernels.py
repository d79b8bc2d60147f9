"""The same training from the same weights with every attention kernel of this machine.

Every step trains on the same window. Each kernel runs twice, and the kernels alternate. Two runs with one kernel differ
by the order of the kernel's additions. Two kernels should not differ more than two runs with one kernel.

Example: python -m benchmarks.kernels
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks import old_torch

SHOWN = (1, 2, 3, 5, 10, 15, 20, 25, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--model", default="llama3.2-1b", help="model shape of benchmarks.step")
    parser.add_argument("--seq-len", type=int, default=16_384)
    args = parser.parse_args()

    is_old = old_torch.install()
    # These modules import torchtitan. torchtitan needs the stand-ins.
    from benchmarks import gpu_checks, step
    from exact_titan.titan.optimizer import AdamW

    step.prepare_process(args.device)
    # With an old torch, lm_head computes in the dtype of its parameters (see benchmarks.old_torch).
    dtypes = {"dtype": "bfloat16" if is_old else "float32", "compute_dtype": "bfloat16"}
    device = torch.device(args.device)
    here = [kernel for kernel in gpu_checks.kernels(device) if gpu_checks.missing(kernel, device) is None]
    print(f"{step.device_name()}, torch {torch.__version__}, {args.model}, a window of {args.seq_len}: cross-entropy")
    for kernel in here * 2:
        step.free_memory()
        with tempfile.TemporaryDirectory() as folder:
            config = step.random_config(args.model, seq_len=args.seq_len, windows=1, folder=Path(folder), **dtypes)
            config = dataclasses.replace(config, optimizer=AdamW.Config(lr=3e-4))
            if kernel != "sdpa":
                config = dataclasses.replace(config, attention=kernel)
            trainer = config.build()
            trainer.step = 1  # the trainer logs the first step
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in trainer.model_parts[0].parameters():
                    if parameter.dim() > 1:
                        step.local(parameter).normal_(std=0.02)
            batch = next(iter(trainer.dataloader))
            side = {side.name: side for side in step.build_sides(trainer)}["exact"]
            values = []
            for number in range(1, SHOWN[-1] + 1):
                step.run_step(trainer, side, batch)
                ce, count = side.loss.sums.take().sum(dim=1).tolist()
                if number in SHOWN:
                    values.append(f"{number}: {ce / count:.4f}")
            print(f"{kernel:6} {'  '.join(values)}", flush=True)
            trainer.close()
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
