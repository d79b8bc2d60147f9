"""The lines of ``exact-titan pack`` and ``append`` about the dataset that they have made."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from exact_titan.dataset import Manifest
from exact_titan.exposure import default_threshold
from exact_titan.reports.exposure import ExposureReport


def packed_lines(manifest: Manifest, folder: Path, seconds: float, tokens: int, *, by_source: bool) -> Iterator[str]:
    """Yield the lines about the contents of a dataset, and the packing speed.

    Args:
        manifest: the manifest of the dataset.
        folder: folder of the dataset.
        seconds: duration of the packing.
        tokens: tokens that were packed in this time.
        by_source: whether every source has a line.
    """
    total = sum(source.tokens for source in manifest.sources)
    for reason, files in _sums(source.passed_over for source in manifest.sources):
        yield f"passed over  {files:,} file{'s' if files > 1 else ''} ({reason})"
    yield f"documents    {sum(source.documents for source in manifest.sources):,}"
    for reason, documents in _sums(source.dropped for source in manifest.sources):
        yield f"  dropped    {documents:,} ({reason})"
    for remark, documents in _sums(source.remarks for source in manifest.sources):
        yield f"  with       {documents:,} ({remark})"
    if manifest.sft is not None:
        for name in manifest.sft.too_long:
            yield f"  too long   {name}"
        yield f"rows         {manifest.sft.rows:,}, template {manifest.sft.template}"
    yield f"tokens       {total:,}"
    if by_source:
        for source in manifest.sources:
            share = 100 * source.tokens / max(1, total)
            yield f"  {share:6.2f} %   {source.name}: {source.tokens:,} tokens, {source.documents:,} documents"
    yield f"end of text  {manifest.tokenizer.eos_token} ({manifest.tokenizer.eos_id})"
    for split, record in manifest.splits.items():
        padding = 100 * record.padding / (record.windows * manifest.window)
        windows = f"{record.windows:,} windows of {manifest.window}, {record.documents:,} documents"
        loss = (
            "" if manifest.sft is None else f", {100 * record.targets / record.tokens:.2f} % of the inputs with a loss"
        )
        yield f"{split:<12} {windows}, {padding:.2f} % padding{loss}"
    report = ExposureReport.of(folder, manifest, "train", threshold=default_threshold(manifest.window))
    yield f"tail share   {report.tail_percent:.1f} % of the targets have a context of {report.tail_start} or more"
    yield f"folder       {folder}"
    yield f"fingerprint  {manifest.fingerprint[:12]}"
    yield f"time         {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"


def _sums(counts: Iterable[dict[str, int]]) -> Iterator[tuple[str, int]]:
    """Yield every name with its sum over the counts, in the order of the first occurrence."""
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    yield from total.items()
