"""The layouts of the ranks that fit four processes, and a model for them. Tests of layouts train all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.dataset import PackedDataset
from tests.titan.test_training import argv, record

WINDOW = 48
"""Tokens of a window. 2, 3 and 4 ranks divide a window under context and tensor parallelism."""

WINDOWS_PER_STEP = 12
"""Windows of a step. 1, 2, 3 and 4 data-parallel ranks divide them, with several microbatches."""

# No degree divides the vocabulary: the shards of the embeddings are padded.
VOCABULARY = 257

GROUPED = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": VOCABULARY}
"""Sizes with fewer key heads than four ranks of a context-parallel group. The embeddings are tied."""

HEADS = {"dim": 48, "n_layers": 1, "n_heads": 12, "n_kv_heads": 12, "ffn_dim": 72, "vocab_size": VOCABULARY}
"""Sizes with heads for 2, 3 and 4 tensor-parallel ranks. The embeddings are tied."""


@dataclass(frozen=True)
class Layout:
    """The degrees of parallelism."""

    replicas: int = 1
    shards: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        return self.replicas * self.shards * self.context * self.tensor

    @property
    def name(self) -> str:
        degrees = {"replicas": self.replicas, "dp": self.shards, "cp": self.context, "tp": self.tensor}
        return "-".join(f"{name}{degree}" for name, degree in degrees.items() if degree > 1) or "one"

    @property
    def options(self) -> list[str]:
        """Options of a run with the layout. Every data-parallel rank has two or three microbatches in a step."""
        windows = WINDOWS_PER_STEP // (self.replicas * self.shards)
        return [
            *["--parallelism.data_parallel_replicate_degree", str(self.replicas)],
            *["--parallelism.context_parallel_degree", str(self.context)],
            *["--parallelism.tensor_parallel_degree", str(self.tensor)],
            *["--training.local_batch_size", str(windows // 2 if windows % 2 == 0 else 1)],
        ]


ONE = Layout()
TWO = [Layout(shards=2), Layout(context=2), Layout(tensor=2), Layout(replicas=2)]
THREE = [Layout(shards=3), Layout(context=3), Layout(tensor=3)]
FOUR = [
    *[Layout(shards=4), Layout(context=4), Layout(tensor=4)],
    *[Layout(shards=2, context=2), Layout(shards=2, tensor=2), Layout(context=2, tensor=2)],
    *[Layout(replicas=2, shards=2), Layout(replicas=2, context=2), Layout(replicas=2, tensor=2)],
]
LAYOUTS = {layout.name: layout for layout in [*TWO, *THREE, *FOUR]}
"""Every combination of data, context and tensor parallelism on two to four processes, by name."""


def sizes_of(layout: Layout) -> dict[str, int]:
    """Return sizes of a model that the layout can divide."""
    return GROUPED if layout.tensor <= 2 and layout.context != 3 else HEADS


def arguments(
    dataset: PackedDataset, folder: Path, *options: str, sizes: dict[str, int] | None = GROUPED, steps: int
) -> list[str]:
    """Return the arguments of a run. ``sizes`` None: ``--model`` in the options names the model."""
    chosen = [item for name, size in (sizes or {}).items() for item in (f"--architecture.{name}", str(size))]
    found = argv(dataset, folder, *chosen, *options, steps=steps)
    batch = ["--training.global_batch_size", str(WINDOWS_PER_STEP)]
    return [*(found if sizes else without_architecture(found)), *batch]


def train(ranks: int, folder: Path, runs: dict[str, list[str]]) -> dict[str, Any]:
    """Train runs by name in one launch. ``runs`` has the arguments of each run. ``--module``: torchtitan's trainer."""
    trainers = {name: "stock" if "--module" in argv else "exact" for name, argv in runs.items()}
    return record(ranks, folder, *({"name": name, "trainer": trainers[name], "argv": runs[name]} for name in runs))


def without_architecture(arguments: list[str]) -> list[str]:
    """Return the arguments without the sizes of a model from scratch."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--architecture."):
            skip = not skip
            continue
        kept.append(argument)
    return kept
