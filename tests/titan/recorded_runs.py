"""The program of the ranks in tests: it trains one config after another and records the values of each step.

    tests.titan.recorded_runs SPEC.json OUT.json

SPEC is a list of runs. A run has these keys:

- ``name``: key of the run in OUT.
- ``trainer``: ``exact`` (the trainer of this package) or ``stock`` (torchtitan's own trainer, unmodified).
- ``argv``: arguments of the trainer.
- ``end_after`` (optional): an earlier last step.
- ``kill_after`` (optional): a step. This process kills itself with SIGKILL after the log of the step.
- ``gradients`` (optional): a file for the full gradients of the first step.
- ``count_operators`` (optional): count the collectives and the reads by the host in each step.
- ``slots`` (optional): a folder. Every rank writes the slots of each window that the rank trains, by the place.

OUT is a dictionary by name. ``graphs`` are the graphs that torch.compile has made for the run until each log step.
Floats are in hexadecimal.
"""

import collections
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exact_titan.titan import cpu, torch_versions

torch_versions.install()
cpu.install()

from torch.distributed.tensor import DTensor  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402
from torchtitan.distributed import utils as dist_utils  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from exact_titan.config import load_config  # noqa: E402
from exact_titan.exposure import Rule, Targets  # noqa: E402
from exact_titan.runs.metrics_log import read_records  # noqa: E402
from exact_titan.titan.compiled_graphs import graphs  # noqa: E402
from exact_titan.titan.metrics import ExposureMetrics  # noqa: E402
from exact_titan.titan.trainer import ExactTrainer  # noqa: E402

REPEATABLE = ("learning_rates", "tokens_seen", "cross_entropy", "buckets", "tail", "weights", "tail_loss_mass")
"""The values of a log step in OUT, under ``metrics``. A resumed run has the values of all steps since step 1."""


class Operators(TorchDispatchMode):
    """Counts collectives and reads of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "c10d" in name or "_local_scalar_dense" in name or "nonzero" in name:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class RecordedRule:
    """A rule that writes the slots of every window into ``folder/PLACE.json``."""

    def __init__(self, rule: Rule, folder: Path) -> None:
        self._rule, self._folder = rule, folder
        folder.mkdir(parents=True, exist_ok=True)

    def __getattr__(self, name: str):
        return getattr(self._rule, name)

    def slot(self, targets: Targets) -> torch.Tensor:
        slot_BL = self._rule.slot(targets)
        for place, slots in zip(targets.places_B.tolist(), slot_BL.tolist(), strict=True):
            file = self._folder / f"{place}.json"
            assert not file.exists(), f"place {place} is trained twice"
            file.write_text(json.dumps(slots))
        return slot_BL


def run(spec: dict) -> dict:
    steps: list[dict] = []
    graphs_made: list[int] = []
    trainer_type = ExactTrainer if spec["trainer"] == "exact" else Trainer
    metrics_type = ExposureMetrics if spec["trainer"] == "exact" else MetricsProcessor
    stock_log, stock_step, stock_clip = metrics_type.log, trainer_type.train_step, dist_utils.clip_grad_norm_

    def log(self, step, global_avg_loss, global_max_loss, grad_norm, extra_metrics=None):
        stock_log(self, step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)
        graphs_made.append(graphs() - graphs_before)
        steps.append({"step": step, "loss": global_avg_loss.hex(), "grad_norm": grad_norm.hex()})
        if step == spec.get("kill_after"):
            os.kill(os.getpid(), signal.SIGKILL)

    def train_step(self, data_iterator):
        with Operators() as operators:
            stock_step(self, data_iterator)
        counts[self.step] = dict(sorted(operators.counts.items()))

    def clip(parameters, *args, **kwargs):
        if spec.get("gradients") and not Path(spec["gradients"]).exists():
            full = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
            if os.environ["RANK"] == "0":
                torch.save([gradient.clone() for gradient in full], spec["gradients"])
        return stock_clip(parameters, *args, **kwargs)

    counts: dict[int, dict[str, int]] = {}
    torch._dynamo.reset()
    graphs_before = graphs()
    metrics_type.log = log
    dist_utils.clip_grad_norm_ = clip
    if spec.get("count_operators"):
        trainer_type.train_step = train_step
    try:
        config = load_config(spec["argv"]) if spec["trainer"] == "exact" else ConfigManager().parse_args(spec["argv"])
        trainer = config.build()
        if spec.get("slots"):
            trainer.loss_fn.rule = RecordedRule(trainer.loss_fn.rule, Path(spec["slots"]))
        if "end_after" in spec:
            trainer.config.training.steps = spec["end_after"]  # after the build: the schedule has all steps
        trainer.train()
        trainer.close()
    finally:
        metrics_type.log, trainer_type.train_step, dist_utils.clip_grad_norm_ = stock_log, stock_step, stock_clip
    result = {"steps": steps, "operators": counts, "graphs": graphs_made}
    if spec["trainer"] == "exact" and os.environ["RANK"] == "0":
        records = read_records(Path(config.dump_folder), "train")
        result["metrics"] = {one["step"]: {name: one[name] for name in REPEATABLE} for one in records}
    if spec["trainer"] == "exact":
        loss = trainer.loss_fn
        loss.start_step()
        result |= {
            "counts": loss.counter.counts.tolist(),
            "weights": [weight.hex() for weight in loss.weights_n.tolist()],
            "windows": trainer.dataloader.state_dict()["windows"],
        }
    return result


def main(spec_file: str, out_file: str) -> None:
    results = {spec["name"]: run(spec) for spec in json.loads(Path(spec_file).read_text())}
    if os.environ["RANK"] == "0":
        Path(out_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
