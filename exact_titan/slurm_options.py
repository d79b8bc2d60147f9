"""Options of the Slurm jobs that a command submits, apart from what submits them, so that ``--help`` is quick."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class SlurmOptions:
    """Of the jobs that ``--executor slurm`` submits."""

    partition: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the cluster's)")] = None
    """Partition."""

    time: str = "24:00:00"
    """Time limit of a job."""

    cpus_per_task: int = 1
    """Cores of a task, all of which its tokenizer uses."""

    mem_per_cpu_gb: int = 2
    """Memory per core, in GB."""

    sbatch: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE…", help_behavior_hint="(default: none)")] = ()
    """Further options of sbatch, such as account=ml constraint=cpu."""
