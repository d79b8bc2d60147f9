"""The comparison of a checkpoint's files with its manifest before a load. All ranks share the work."""

from pathlib import Path

import torch.distributed as dist
from torchtitan.tools.logging import logger

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_verification import check_contents, known_digests
from exact_titan.titan.rank_0 import as_rank_0


def verify_files(checkpoint: Path) -> None:
    """Compare the SHA-256 of the checkpoint's files with the manifest. A collective call.

    Every rank reads an equal share of the files. A checkpoint of an earlier version has no SHA-256, and a checkpoint of
    other software has no manifest: both are not compared.

    Raises:
        InputError: on all ranks, if a file has changed since the save or cannot be read.
    """
    sha256 = as_rank_0(lambda: known_digests(checkpoint))
    if not sha256:
        logger.info(f"{checkpoint} has no SHA-256 of its files: the contents of the files are not compared")
        return
    mine = dict(list(sha256.items())[dist.get_rank() :: dist.get_world_size()])
    complaint: InputError | None = None
    try:
        check_contents(checkpoint, mine)
    except InputError as error:
        complaint = error
    complaints: list[InputError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(complaints, complaint)
    for one in complaints:
        if one is not None:
            raise one
