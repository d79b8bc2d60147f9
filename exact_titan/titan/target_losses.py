"""Collect the plain cross-entropy of every validation target on rank 0.

1. :class:`TargetSums` keeps the cross-entropies of a batch, in the chunks of the loss.
2. :meth:`TargetSums.end_batch` gathers the batches of all ranks on rank 0, which moves them to the host. The devices
   hold one batch at a time.
3. :class:`TargetFiles` reads the validation windows on rank 0, adds bucket, document and place of every target, and
   writes the file.
"""

from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torchtitan.tools.logging import logger

from exact_titan.dataset.dataset import NO_LABEL, PackedDataset
from exact_titan.dataset.lengths import lengths_file, read_lengths
from exact_titan.dataset.policies import lay_out
from exact_titan.errors import InputError
from exact_titan.exposure import effective_context
from exact_titan.runs.records import ValidationSet, Weights
from exact_titan.runs.target_losses import TargetLosses, write_target_losses
from exact_titan.system.file_errors import why
from exact_titan.titan.cross_entropy import BucketSums
from exact_titan.titan.loader import PackedDataLoader


class TargetSums(BucketSums):
    """The sums of a validation, and on rank 0 the cross-entropies of all ranks.

    Attributes:
        batches: on rank 0 and on the host, the cross-entropies of each batch of all ranks, float32 ``[R * B, L]`` in
            the order of the places. Inputs without a target have 0.
    """

    def __init__(self, n: int, device: torch.device | str) -> None:
        super().__init__(n, device)
        self.batches: list[np.ndarray] = []
        self._chunks: list[torch.Tensor] = []

    def add(self, ce_BL: torch.Tensor, index_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
        """Add a chunk of a batch. The loss computes the chunks of the sequence in their order."""
        super().add(ce_BL, index_BL, valid_BL)
        self._chunks.append(ce_BL)

    def end_batch(self) -> None:
        """Gather the batch of all ranks on rank 0. A collective."""
        ce_BL = torch.cat(self._chunks, dim=1)
        self._chunks.clear()
        ranks = dist.get_world_size()
        if ranks == 1:
            self.batches.append(ce_BL.cpu().numpy())
        elif dist.get_rank() == 0:
            parts = [torch.empty_like(ce_BL) for _ in range(ranks)]
            dist.gather(ce_BL, parts)
            self.batches.append(torch.cat(parts).cpu().numpy())
        else:
            dist.gather(ce_BL)


class Documents:
    """The number of the document of every target of the datasets of a validation.

    The policy lays out the documents again, from their lengths. The documents of the second dataset follow the
    documents of the first dataset.

    Args:
        datasets: the datasets in the order of the mixture.
        split: split of the datasets.

    Raises:
        InputError: if the file of the lengths is missing or damaged.
    """

    def __init__(self, datasets: list[PackedDataset], split: str) -> None:
        firsts = accumulate((one.record.documents for one in datasets), initial=0)
        self._windows = {
            one.folder: _documents_of_windows(one, split, first) for one, first in zip(datasets, firsts, strict=False)
        }

    def of(self, dataset: PackedDataset, k: int) -> np.ndarray:
        """Return the document of every input of window ``k``, int32, without padding."""
        document_S, inputs_S, border_N = self._windows[dataset.folder]
        segments = slice(border_N[k], border_N[k + 1])
        return np.repeat(document_S[segments], inputs_S[segments])


def _documents_of_windows(dataset: PackedDataset, split: str, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return document and inputs of every segment, and the first segment of every window."""
    lengths_D = read_lengths(dataset.folder, split, dataset.record.documents, inputs=dataset.record.tokens)
    documents, inputs, borders = [], [], [0]
    for window in lay_out(dataset.manifest.policy, dataset.window, lengths_D, dataset.record.parts):
        documents += [segment.document + first for segment in window]
        inputs += [segment.inputs for segment in window]
        borders.append(len(documents))
    if len(borders) != len(dataset) + 1 or sum(inputs) != dataset.record.tokens:
        raise InputError(
            f"{lengths_file(dataset.folder, split)} does not fit the windows: copy the dataset again or pack it again"
        )
    return np.array(documents, dtype=np.int32), np.array(inputs, dtype=np.int32), np.array(borders)


class TargetFiles:
    """Writes the file of every validation on rank 0 (:mod:`exact_titan.runs.target_losses`).

    Args:
        run: output folder of the run.
        loader: a dataloader of the validation windows.
        windows: the validation windows.
        keep: number of files that stay.
    """

    def __init__(self, run: Path, loader: PackedDataLoader, windows: ValidationSet, *, keep: int) -> None:
        self._run, self._loader, self._windows, self._keep = run, loader, windows, keep
        self._documents: Documents | None = None

    def write(self, sums: TargetSums, *, step: int, threshold: int, weights: Weights) -> None:
        """Write the targets of a validation in the order of the places. Host memory: 34 bytes a target.

        Without the lengths of the documents the run writes no file and warns.
        """
        mixture = self._loader.mixture
        try:
            self._documents = self._documents or Documents(mixture.datasets, mixture.split)
        except InputError as error:
            logger.warning(f"The run writes no file with the targets of the validation: {error}")
            return
        columns = {name: np.concatenate(parts) for name, parts in self._columns(sums, self._documents).items()}
        losses = TargetLosses(
            step=step,
            threshold=threshold,
            windows=self._windows,
            cross_entropy=columns["cross_entropy"],
            bucket=columns["bucket"],
            document=columns["document"],
            place=columns["place"],
            weights=weights,
        )
        try:
            write_target_losses(self._run, losses, keep=self._keep)
        except (OSError, SafetensorError) as error:
            # The mean values of the validation are in metrics.jsonl. The run is worth more than this file.
            cause = why(error) if isinstance(error, OSError) else " ".join(str(error).split())
            logger.warning(f"The run keeps no file with the targets of the validation of step {step}: {cause}")

    def _columns(self, sums: TargetSums, documents: Documents) -> dict[str, list[np.ndarray]]:
        """Return the columns of the file, one array a window."""
        columns: dict[str, list[np.ndarray]] = {"cross_entropy": [], "bucket": [], "document": [], "place": []}
        ce = (row for batch in sums.batches for row in batch)
        for place, ce_L in zip(range(self._windows.windows), ce, strict=False):  # padding windows are at the end
            found = self._loader.window_at(place)
            assert found is not None
            dataset, k = found
            window = dataset[k]
            target_L = (window["labels"] != NO_LABEL).numpy()
            bucket_L = self._loader.mixture.buckets.index(effective_context(window["positions"])).numpy()
            columns["cross_entropy"].append(ce_L[target_L])
            columns["bucket"].append(bucket_L[target_L].astype(np.uint8))
            document_n = documents.of(dataset, k)
            columns["document"].append(document_n[target_L[: len(document_n)]])
            columns["place"].append(place * dataset.window + np.flatnonzero(target_L))
        return columns
