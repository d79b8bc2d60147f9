"""``exact_titan.train`` that records the windows of every step. A kill loses no record of a finished step.

    tests.titan.traced_train FOLDER [options of exact_titan.train]

Each rank writes ``<launcher>-<rank>.jsonl`` into FOLDER, one line for every finished step: ``step``, the ``places``
that this rank trained, and ``loss`` on rank 0. The end of the run adds ``final.json``.
"""

import json
import os
import sys
from pathlib import Path

from exact_titan import train
from exact_titan.titan import cpu, torch_versions

torch_versions.install()
cpu.install()

import torch.distributed as dist  # noqa: E402

from exact_titan.titan.metrics import ExposureMetrics  # noqa: E402
from exact_titan.titan.trainer import ExactTrainer  # noqa: E402


def main(folder: Path, argv: list[str]) -> None:
    launch = os.getppid()  # later the launcher may have ended
    losses: dict[int, str] = {}
    stock_log = ExposureMetrics.log

    def log(self, step, global_avg_loss, *args, **kwargs) -> None:
        losses[step] = global_avg_loss.hex()
        stock_log(self, step, global_avg_loss, *args, **kwargs)

    class TracedTrainer(ExactTrainer):
        def train_step(self, data_iterator) -> None:
            super().train_step(data_iterator)
            rank = dist.get_rank()
            record = {"step": self.step, "places": [place for batch in self.nonfinite.step_places for place in batch]}
            if rank == 0:
                record["loss"] = losses[self.step]
            with (folder / f"{launch}-{rank}.jsonl").open("a") as out:
                out.write(json.dumps(record) + "\n")

        def train(self) -> None:
            super().train()
            loss = self.loss_fn
            loss.start_step()
            loss.counter.reduce()
            if dist.get_rank() == 0:
                final = {
                    "counts": loss.counter.counts.tolist(),
                    "weights": [weight.hex() for weight in loss.weights_n.tolist()],
                    "windows": self.dataloader.state_dict()["windows"],
                }
                (folder / "final.json").write_text(json.dumps(final))

    ExposureMetrics.log = log
    ExactTrainer.Config._owner = TracedTrainer
    train.main(argv)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
