"""One window of a packed dataset as text: the documents, the tokens of each document, and the cuts."""

from itertools import accumulate, islice, pairwise
from os import PathLike

import numpy as np

from exact_titan.dataset.dataset import NO_LABEL, PackedDataset, reading_window
from exact_titan.dataset.lengths import lengths_file, read_lengths
from exact_titan.dataset.manifest import TOKENIZER_FOLDER
from exact_titan.dataset.policies import Segment, lay_out
from exact_titan.documents.tokenizer import FILE_NAME, load_tokenizer
from exact_titan.errors import InputError
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.run_order import RunOrder

_BEGINNING = 12
"""Number of a document's first tokens in a summary."""


def window_report(folder: str | PathLike[str], k: int, split: str = "train") -> str:
    """Return window ``k`` as text: a heading and the decoded text of each segment.

    The dataset's tokenizer decodes the text. The text of a segment is the text of its inputs and of its last label,
    with special tokens. The heading names the document and the part of the document. The function finds both from the
    documents' lengths: the policy lays out the documents again, up to this window.

    Args:
        folder: the packed dataset.
        k: number of the window in the split, from 0.
        split: ``train`` or ``val``.

    Raises:
        InputError: if the dataset is incomplete, the dataset has no such split or window, or the lengths do not give
            the windows of the dataset.
    """
    dataset = PackedDataset(folder, split)
    if not 0 <= k < len(dataset):
        raise InputError(f"window {k}: {dataset.folder} has the windows 0 … {len(dataset) - 1} in its split {split}")
    tokenizer = load_tokenizer(dataset.folder / TOKENIZER_FOLDER / FILE_NAME)
    lengths_D = read_lengths(dataset.folder, split, dataset.record.documents, inputs=dataset.record.tokens)
    with reading_window(dataset, k):
        window = dataset[k]
    borders = window["cu_seqlens"].tolist()
    segments = _segments(dataset, k, split, lengths_D, borders)
    padding = dataset.window - sum(segment.inputs for segment in segments)
    lines = [
        f"{dataset.folder}, {split}: window {k} of 0 … {len(dataset) - 1}, policy {dataset.manifest.policy}",
        f"{dataset.window:,} inputs, {padding:,} of them padding; segments: {len(segments)}",
    ]
    for number, (segment, (start, end)) in enumerate(zip(segments, pairwise(borders), strict=False)):
        ids = window["input"][start:end].tolist()
        if (last := int(window["labels"][end - 1])) != NO_LABEL:
            ids.append(last)
        unsupervised = int((window["labels"][start:end] == NO_LABEL).sum())
        mask = f", {unsupervised:,} labels without a loss" if unsupervised else ""
        lines += [
            "",
            f"== segment {number}: inputs {start:,} … {end - 1:,} ({end - start:,}), "
            f"{_part(segment, int(lengths_D[segment.document]))}{mask}",
            tokenizer.decode(ids, skip_special_tokens=False),
        ]
    return "\n".join(lines)


def place_report(dataset_path: str, place: int, split: str = "train", *, seed: int = 0) -> str:
    """Return the window at a place of a run on several datasets as text: a heading and :func:`window_report`.

    With weights, the place is the place in a run with this ``dataloader.seed``. Without weights, the windows of the
    datasets follow each other.

    Raises:
        InputError: as :func:`window_report`, if ``dataset_path`` is no mixture, or if the run has no such place.
    """
    mixture = Mixture(dataset_path, split)
    order = RunOrder(mixture, seed=seed, infinite=mixture.shares is not None)
    found = order.window(place) if place >= 0 else None
    if found is None:
        last = "" if order.places is None else f" to {order.places - 1}"
        raise InputError(f"window {place}: a run on {dataset_path} has the places from 0{last} in its split {split}")
    dataset, k = mixture.datasets[found[0]], found[1]
    shuffled = f", dataloader.seed {seed}" if order.shuffled else ""
    return f"place {place} of a run on {dataset_path}{shuffled}\n{window_report(dataset.folder, k, split)}"


def window_summary(dataset: PackedDataset, k: int) -> str:
    """Return window ``k`` in one line: its number, and the number of tokens and the first words of every document."""
    tokenizer = load_tokenizer(dataset.folder / TOKENIZER_FOLDER / FILE_NAME)
    window = dataset[k]
    borders = window["cu_seqlens"].tolist()
    parts = []
    for start, end in pairwise(borders):
        if (window["labels"][start:end] != NO_LABEL).any():  # the last segment may be padding
            begin = tokenizer.decode(window["input"][start : min(end, start + _BEGINNING)].tolist())
            parts.append(f"{end - start:,} tokens from {' '.join(begin.split())!r}")
    documents = "1 document" if len(parts) == 1 else f"{len(parts)} documents"
    return f"window {k} of {dataset.folder}: {documents}, {'; '.join(parts)}"


def _segments(dataset: PackedDataset, k: int, split: str, lengths_D: np.ndarray, borders: list[int]) -> list[Segment]:
    """Compute the segments of window ``k`` with the policy, and check that the window has these segments."""
    layout = lay_out(dataset.manifest.policy, dataset.window, lengths_D, dataset.record.parts)
    segments = next(islice(layout, k, None), [])
    ends = accumulate(segment.inputs for segment in segments)
    if sorted({0, *ends, dataset.window}) != borders:
        raise InputError(
            f"{lengths_file(dataset.folder, split)} does not fit the windows: copy the dataset again or pack it again"
        )
    return segments


def _part(segment: Segment, tokens: int) -> str:
    """Describe the part of the document in a segment. ``tokens`` is the document's length, with end-of-text."""
    last = segment.first + segment.inputs  # the last label
    cuts = ["begins before"] * (segment.first > 0) + ["goes on after"] * (last < tokens - 1)
    cut = f"cut: it {' and '.join(cuts)} this segment" if cuts else "whole"
    return f"document {segment.document}, tokens {segment.first:,} … {last:,} of {tokens:,}, {cut}"
