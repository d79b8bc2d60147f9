"""Documents to packed dataset to batches. Reading a packed dataset needs torch and numpy only."""

from exact_titan.dataset.dataset import PackedDataset
from exact_titan.dataset.manifest import Manifest

__all__ = ["Manifest", "PackedDataset"]
