"""The graphs of torch.compile in a run: the log names every step that compiles one, because the step takes longer."""

import torch.distributed as dist
from torch._dynamo.utils import counters
from torchtitan.tools.logging import logger


class CompiledGraphs:
    """Counts the graphs that torch.compile has made in this process, and logs new graphs on rank 0.

    A graph depends on the shapes of a batch and on whether gradients are computed. A graph does not depend on the
    documents. All graphs are made in the first step and in the first validation.
    """

    def __init__(self) -> None:
        self._known = graphs()

    def report(self, during: str) -> None:
        """Log the graphs made since the last call. ``during`` names the part of the run, such as ``step 1``."""
        now = graphs()
        made, self._known = now - self._known, now
        if made and dist.get_rank() == 0:
            logger.info(
                f"torch.compile: {made} new {'graph' if made == 1 else 'graphs'} in {during}, {self._known} in all"
            )


def graphs() -> int:
    """Return the number of graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]
