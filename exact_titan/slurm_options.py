"""Options of the Slurm jobs that ``exact-titan pack`` and ``exact-titan append`` submit.

The options have their own module, because ``--help`` must be fast and the modules that submit jobs import slowly.
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class SlurmOptions:
    """Options of the jobs that ``--executor slurm`` submits."""

    partition: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the cluster's)")] = None
    """Partition."""

    time: str = "24:00:00"
    """Time limit of a job."""

    cpus_per_task: int = 1
    """Cores of a task. The tokenizer uses all cores of the task."""

    mem_per_cpu_gb: int = 2
    """Memory per core, in GB."""

    sbatch: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE…", help_behavior_hint="(default: none)")] = ()
    """Other options of sbatch, such as account=ml constraint=cpu."""
