"""Numbers of all shards of a dataset that every rank needs: each rank reads a part of the shards once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from exact_titan.dataset.records import ShardRecord
from exact_titan.errors import InputError
from exact_titan.sampling.mixture import Mixture

T = TypeVar("T")


def of_all_shards(shards: Sequence[ShardRecord], read: Callable[[ShardRecord], T]) -> list[T]:
    """Return ``read(shard)`` of every shard. A collective call of all ranks, if a process group exists.

    The ranks divide the shards and exchange the results.

    Raises:
        InputError: on all ranks, if ``read`` raises the error on a rank.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if ranks == 1:
        return [read(shard) for shard in shards]
    mine: list[T] | InputError
    try:
        mine = [read(shard) for shard in shards[rank::ranks]]
    except InputError as error:
        mine = error
    of_ranks = gather(mine)
    for found in of_ranks:
        if isinstance(found, InputError):
            raise found
    return [of_ranks[number % ranks][number // ranks] for number in range(len(shards))]  # type: ignore[index]


def joint_counts(mixture: Mixture) -> torch.Tensor:
    """Return :attr:`Mixture.joint_counts`, float64 ``[n, n]``. A collective call, as :func:`of_all_shards`."""
    of_datasets = [
        dataset.sum_joint_counts(of_all_shards(dataset.record.shards, dataset.joint_counts_of))
        for dataset in mixture.datasets
    ]
    return torch.from_numpy(mixture.mix_joint_counts([np.asarray(joint_nn) for joint_nn in of_datasets]))


def gather(mine: T) -> list[T]:
    """Return the value of every rank. A collective call."""
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
