"""The attention work of the windows of a run: the numbers with which every rank distributes the windows of a step.

All ranks must have the same numbers. Otherwise two ranks could train the same window. The numbers come from the file of
a dataset (:mod:`exact_titan.dataset.work`). Every rank checks the digests of the file at its start. A dataset of an
older version has no file. The ranks then read the segments of its shards, each rank an equal part, and exchange the
numbers. No rank writes into the folder of a dataset.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch.distributed as dist
from torchtitan.tools.logging import logger

from exact_titan.dataset.dataset import PackedDataset
from exact_titan.dataset.records import ShardRecord
from exact_titan.dataset.work import AttentionWork, compute_work, work_file, wrong_work
from exact_titan.errors import InputError
from exact_titan.sampling.balance import attention_work
from exact_titan.titan.shared_reading import gather, of_all_shards


def complete_work(datasets: Sequence[PackedDataset]) -> None:
    """Compute the attention work of the datasets without a file in this process.

    Raises:
        InputError: if a file or a shard is broken.
    """
    for dataset in datasets:
        if dataset.work is None:
            begun = time.monotonic()
            shards = dataset.record.shards
            dataset.work = AttentionWork(shards, compute_work(dataset.folder, shards, dataset.window))
            _log(dataset, 1, time.monotonic() - begun)


def share_work(datasets: Sequence[PackedDataset]) -> None:
    """Compute the attention work of the datasets without a file on all ranks together. A collective call.

    Raises:
        InputError: on all ranks, if a file or a shard of a rank is broken.
    """
    # A machine with a copy of a dataset may have the file, and another machine not.
    lacking = [index for index, dataset in enumerate(datasets) if dataset.work is None]
    for index in sorted({index for lacks in gather(lacking) for index in lacks}):
        begun = time.monotonic()
        dataset = datasets[index]
        parts = of_all_shards(dataset.record.shards, partial(_work_of_shard, dataset))
        dataset.work = AttentionWork(dataset.record.shards, np.concatenate(parts))
        if dist.get_rank() == 0:
            _log(dataset, dist.get_world_size(), time.monotonic() - begun)


def check_work(dataset: PackedDataset, k: int) -> None:
    """Compare the attention work of window ``k`` with its segments.

    Raises:
        InputError: if the numbers differ.
    """
    assert dataset.work is not None
    found, segments = int(dataset.work[np.array([k])][0]), attention_work(dataset, k)
    if found == segments:
        return
    if dataset.work.file is not None:
        raise wrong_work(dataset.work.file, f"window {k} has the attention work {found}, and its segments {segments}")
    raise InputError(
        f"window {k} of {dataset.folder} has the attention work {segments} here, and had {found} at the start of the "
        f"run: `exact-titan verify {dataset.folder}` on every machine says what is wrong"
    )


def _work_of_shard(dataset: PackedDataset, shard: ShardRecord) -> np.ndarray:
    return compute_work(dataset.folder, [shard], dataset.window)


def _log(dataset: PackedDataset, ranks: int, seconds: float) -> None:
    shards = len(dataset.record.shards)
    each = f"; {-(-shards // ranks):,} on each of {ranks:,} ranks" if ranks > 1 else ""
    logger.info(
        f"{dataset.folder} has no {work_file(dataset.folder, dataset.split).name}, which `pack` and `append` write: "
        f"this start read the segments of all shards ({shards:,}{each}) in {seconds:.1f} s"
    )
