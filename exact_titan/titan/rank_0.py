"""Values that rank 0 reads for all ranks. Other ranks may see other files on a shared disk."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def as_rank_0(value: Callable[[], Any]) -> Any:
    """Return the result of ``value`` on rank 0 to all ranks. A collective call.

    Raises:
        Exception: on all ranks, if ``value`` raises the exception on rank 0.
    """
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = value()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]
