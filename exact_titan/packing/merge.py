"""Merge finished parts into one dataset: move the shards and add up the counts. No token is read again."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from exact_titan.dataset.lengths import (
    LengthWriter,
    lengths_file,
    read_lengths,
    read_unsupervised,
    unsupervised_file,
)
from exact_titan.dataset.manifest import SftRecord, SourceRecord, SplitRecord
from exact_titan.dataset.manifest_checks import SPLITS, shard_name
from exact_titan.dataset.work import write_work
from exact_titan.documents.digests import digest_in_order, digest_of_all
from exact_titan.packing.part_result import PartResult, part_folder
from exact_titan.packing.parts import Part
from exact_titan.packing.reasons import MOST_NAMES
from exact_titan.system.atomic_files import partial_of, publish

DOUBLES = "files with the same content as an earlier file"


def source_records(
    names: Sequence[tuple[str, bool]],
    results: Sequence[PartResult],
    passed_over: Sequence[dict[str, int]],
    *,
    covers_names: bool = False,
) -> list[SourceRecord]:
    """Return the records of the sources for the manifest.

    Args:
        names: (name, is a single file) of each source.
        results: results of the parts, in their order.
        passed_over: number of files that each source does not read, by reason.
        covers_names: whether the digest of several files covers the names of the files, as in formats 1 to 3.
    """
    records = []
    seen: set[str] = set()
    for index, (name, is_file) in enumerate(names):
        shares = [result.sources[str(index)] for result in results if str(index) in result.sources]
        files = [file for share in shares for file in share.files]
        by_name = covers_names and not (is_file and files)
        remarks = _sums(share.remarks for share in shares)
        contents = {file.sha256: file.bytes for file in files}
        if doubles := len(files) - len(contents.keys() - seen):
            remarks[DOUBLES] = doubles
        seen |= contents.keys()
        records.append(
            SourceRecord(
                name=name,
                files=len(files),
                bytes=sum(file.bytes for file in files),
                sha256=digest_of_all(files) if by_name else digest_in_order(files),
                documents=sum(share.documents for share in shares),
                tokens=sum(share.tokens for share in shares),
                dropped=_sums(share.dropped for share in shares),
                remarks=remarks,
                contents=contents,
                passed_over=passed_over[index],
            )
        )
    return records


def sft_record(before: SftRecord, results: Sequence[PartResult]) -> SftRecord:
    """Return the record of the instructions of a dataset and of finished parts, in their order."""
    shares = [share for result in results for share in result.sources.values()]
    names = [name for share in shares for name in share.too_long]
    return replace(
        before,
        rows=before.rows + sum(share.rows for share in shares),
        too_long=[*before.too_long, *names][:MOST_NAMES],
    )


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total


def move_parts(
    parts: Sequence[tuple[Part, PartResult]],
    folder: Path,
    dataset: Path,
    before: dict[str, SplitRecord],
    *,
    window: int,
    masked: bool,
) -> dict[str, SplitRecord]:
    """Move the parts' shards into a dataset, after the dataset's present shards.

    All files are on the disk when the function returns. A manifest that names the files may then be written. The shards
    were written through to the disk when their parts were finished.

    Args:
        parts: finished parts with their results.
        folder: folder of all parts.
        dataset: the dataset's folder. The files of lengths and of attention work grow. All other present files stay
            unchanged.
        before: the present splits of the dataset.
        window: inputs per window.
        masked: whether the dataset has labels without a loss (format 3).

    Returns:
        The new splits of the dataset.
    """
    records: dict[str, SplitRecord] = {}
    for split in SPLITS:
        old = before.get(split)
        gained = [(part, result.splits[split]) for part, result in parts if split in result.splits]
        shards = list(old.shards) if old else []
        for part, record in gained:
            for shard in record.shards:
                name = shard_name(split, len(shards))
                os.replace(part_folder(folder, part) / shard.file, dataset / name)
                shards.append(replace(shard, file=name))
        all_records = ([old] if old else []) + [record for _, record in gained]
        if not all_records:
            continue
        folders = [(part_folder(folder, part), record) for part, record in gained]
        _join_lengths(split, [(dataset, old), *folders] if old else folders, dataset, masked=masked)
        write_work(dataset, split, shards, window)
        records[split] = SplitRecord(
            windows=sum(record.windows for record in all_records),
            tokens=sum(record.tokens for record in all_records),
            targets=sum(record.targets for record in all_records),
            padding=sum(record.padding for record in all_records),
            documents=sum(record.documents for record in all_records),
            bucket_counts=[sum(counts) for counts in zip(*(r.bucket_counts for r in all_records), strict=True)],
            shards=shards,
            # A split of format 1 has no parts: all its documents are one part.
            parts=[documents for record in all_records for documents in record.parts or [record.documents]],
        )
    return records


def _join_lengths(split: str, joined: Sequence[tuple[Path, SplitRecord]], dataset: Path, *, masked: bool) -> None:
    """Join the lengths and the masks of the documents of several folders. Replace each file in one step."""
    lengths = [read_lengths(folder, split, record.documents, inputs=record.tokens) for folder, record in joined]
    _write(lengths, lengths_file(dataset, split))
    if masked:
        masks = [read_unsupervised(folder, split, of) for (folder, _), of in zip(joined, lengths, strict=True)]
        _write(masks, unsupervised_file(dataset, split))


def _write(numbers: Sequence[np.ndarray], file: Path) -> None:
    new = partial_of(file)
    try:
        writer = LengthWriter(new)
        for numbers_D in numbers:
            writer.extend(numbers_D)
        writer.flush()
        publish(new, file)
    finally:
        new.unlink(missing_ok=True)
