"""Check every byte of a packed dataset against its manifest."""

import hashlib
from collections.abc import Iterator
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import torch

from exact_titan.dataset.files import check_file, check_size
from exact_titan.dataset.lengths import read_lengths, read_unsupervised, unsupervised_of_segments
from exact_titan.dataset.manifest import TOKENIZER_FOLDER, Manifest, ShardRecord, SplitRecord
from exact_titan.dataset.parsed_records import AGAIN
from exact_titan.dataset.policies import Segment, lay_out
from exact_titan.dataset.shards import Shard
from exact_titan.dataset.work import section, work_file, work_of_shard, written_sections, wrong_work
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets


def verify(folder: Path) -> Iterator[str]:
    """Check a packed dataset. Memory holds one shard at a time.

    1. Check the manifest and the digest of the tokenizer.
    2. Lay out the documents of every split again, from their lengths.
    3. Check the digest and the invariants of every shard, and compare its windows with the windows of step 2. In a
       dataset of instructions, also compare the labels without a loss with the documents' masks. If the dataset has
       the attention work of its windows, compare the numbers with the windows.
    4. Compare the sums over the shards with the manifest.

    Yields:
        A line for the manifest, the tokenizer, each shard and each split, directly after the successful check.

    Raises:
        InputError: at the first error. The error names the shard or the key of the manifest.
    """
    manifest = Manifest.read(folder)
    yield f"manifest: fingerprint {manifest.fingerprint}"
    tokenizer = folder / TOKENIZER_FOLDER / "tokenizer.json"
    check_file(tokenizer)
    _equal(f"{tokenizer}: sha256", hashlib.sha256(tokenizer.read_bytes()).hexdigest(), manifest.tokenizer.sha256)
    yield f"tokenizer: {manifest.tokenizer.name}, {manifest.tokenizer.vocab_size} ids"
    for split, record in manifest.splits.items():
        yield from _verify_split(folder, split, record, manifest)


def _verify_split(folder: Path, split: str, record: SplitRecord, manifest: Manifest) -> Iterator[str]:
    window = manifest.window
    lengths_D = read_lengths(folder, split, record.documents, inputs=record.tokens)
    unsupervised_D = None if manifest.sft is None else read_unsupervised(folder, split, lengths_D)
    layout = lay_out(manifest.policy, window, lengths_D, record.parts)
    buckets = Buckets(window)
    counts = torch.zeros(len(buckets), dtype=torch.int64)
    windows = inputs = targets = inside = 0
    sections = written_sections(folder, split, record.shards)
    for entry in record.shards:
        file = folder / entry.file
        shard = _verify_shard(file, entry, manifest)
        segments_S3 = _verify_layout(file, shard, list(islice(layout, entry.windows)), lengths_D, manifest)
        unsupervised_S = _verify_mask(file, shard, segments_S3, unsupervised_D)
        counts_n = buckets.count_segments(torch.tensor(shard.segment_length), torch.from_numpy(unsupervised_S))
        counts += counts_n
        inside += _ids_inside(shard, segments_S3, manifest.tokenizer.eos_id)
        windows += entry.windows
        inputs += int(shard.segment_length.sum(dtype=np.int64))
        targets += int(counts_n.sum())
        if sections is not None and next(sections) != section(work_of_shard(shard, window), entry, window):
            raise wrong_work(work_file(folder, split), f"its attention work is not that of the windows of {file}")
        yield f"{entry.file}: {entry.windows} windows, {entry.tokens} tokens, {entry.segments} segments"
    _equal(f"{folder}: windows of {split}", windows, record.windows)
    _true(next(layout, None) is None, f"{folder}: each document of {split} is in its windows")
    _equal(f"{folder}: tokens of {split}", inputs, record.tokens)
    _equal(f"{folder}: targets of {split}", targets, record.targets)
    _equal(f"{folder}: padding of {split}", windows * window - inputs, record.padding)
    _equal(f"{folder}: bucket_counts of {split}", counts.tolist(), record.bucket_counts)
    also = f", {inside} end-of-text ids inside documents" if inside else ""
    work = "" if sections is None else "attention work, "
    yield f"split {split}: {windows} windows, {targets} targets, {work}bucket counts{also}"


def _ids_inside(shard: Shard, segments_S3: np.ndarray, eos_id: int) -> int:
    """Return the number of end-of-text ids inside the documents of a shard.

    Every token of a document except the last token is an input once. The first token does not count, because a
    tokenizer may begin a document with the end-of-text id.
    """
    start_S, length_S = shard.segment_start.astype(np.int64), shard.segment_length.astype(np.int64)
    ends_T = np.append(0, np.cumsum(shard.tokens == eos_id))
    first_S = start_S[segments_S3[:, 1] == 0]
    inputs = int((ends_T[start_S + length_S] - ends_T[start_S]).sum())
    return inputs - int((shard.tokens[first_S] == eos_id).sum())


def _verify_shard(file: Path, entry: ShardRecord, manifest: Manifest) -> Shard:
    check_size(file, entry.bytes)
    with file.open("rb") as stream:
        _equal(f"shard {file}: sha256", hashlib.file_digest(stream, "sha256").hexdigest(), entry.sha256)
    shard = Shard(file)
    _equal(f"shard {file}: dtype of tokens", str(shard.tokens.dtype), manifest.token_dtype)
    _equal(f"shard {file}: tokens", len(shard.tokens), entry.tokens)
    _equal(f"shard {file}: segments", len(shard.segment_start), entry.segments)
    _equal(f"shard {file}: segments", len(shard.segment_length), entry.segments)
    _equal(f"shard {file}: windows", len(shard.window_segments) - 1, entry.windows)

    start_S, length_S, border_N = shard.segment_start, shard.segment_length.astype(np.int64), shard.window_segments
    _true(border_N[0] == 0 and border_N[-1] == len(start_S), f"shard {file}: window_segments spans all segments")
    _true(bool((np.diff(border_N) > 0).all()), f"shard {file}: each window has a segment")
    inside = (start_S >= 0) & (length_S >= 1) & (start_S + length_S < len(shard.tokens))
    _true(bool(inside.all()), f"shard {file}: each segment and its last label lie within the tokens")
    inputs_N = np.add.reduceat(length_S, border_N[:-1])
    _true(bool((inputs_N <= manifest.window).all()), f"shard {file}: each window has at most its length in inputs")
    _true(int(shard.tokens.max()) < manifest.tokenizer.vocab_size, f"shard {file}: each token is in the vocabulary")
    return shard


def _verify_layout(
    file: Path, shard: Shard, windows: list[list[Segment]], lengths_D: np.ndarray, manifest: Manifest
) -> np.ndarray:
    """Check that the policy gives the shard's segments, and that the shard stores each of their tokens once.

    Returns:
        Document, first input and number of inputs of every segment, int64 ``[S, 3]``.
    """
    segments_S3 = np.array(list(chain.from_iterable(windows)), dtype=np.int64).reshape(-1, 3)
    document_S, first_S, inputs_S = segments_S3.T
    what = f"shard {file}: its windows are the windows that {manifest.policy} makes of the documents' lengths"
    _true(list(accumulate(map(len, windows), initial=0)) == shard.window_segments.tolist(), what)
    _true(np.array_equal(inputs_S, shard.segment_length), what)
    # If a segment continues the document of the segment before, its first token is stored already.
    follows_S = np.append(False, document_S[1:] == document_S[:-1])
    stored_S = np.cumsum(inputs_S + 1 - follows_S)
    _true(np.array_equal(shard.segment_start, stored_S - inputs_S - 1), f"shard {file}: each token is stored once")
    _true(int(stored_S[-1]) == len(shard.tokens), f"shard {file}: each token is in a window")
    end_S = stored_S[first_S + inputs_S == lengths_D[document_S] - 1] - 1
    ends = bool((shard.tokens[end_S] == manifest.tokenizer.eos_id).all())
    _true(ends, f"shard {file}: each document ends with the end-of-text token")
    return segments_S3


def _verify_mask(file: Path, shard: Shard, segments_S3: np.ndarray, unsupervised_D: np.ndarray | None) -> np.ndarray:
    """Check the labels without a loss of the shard's segments. Return their number for every segment, int64 ``[S]``."""
    found = shard.segment_unsupervised
    if unsupervised_D is None or found is None:
        what = f"shard {file}: only the shards of a dataset of instructions have labels without a loss"
        _true(unsupervised_D is None and found is None, what)
        return np.zeros(len(segments_S3), dtype=np.int64)
    unsupervised_S = unsupervised_of_segments(unsupervised_D, segments_S3)
    _true(np.array_equal(found, unsupervised_S), f"shard {file}: its labels without a loss are those of the documents")
    return unsupervised_S


def _equal(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise InputError(f"{what}: found {found}, the manifest says {wanted}: {AGAIN}")


def _true(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"{what}: this check failed: {AGAIN}")
