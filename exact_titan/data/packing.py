"""Documents to a packed dataset: read ahead, tokenize, pack, and put it in place in one step."""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat, takewhile
from pathlib import Path
from typing import TypeVar

import numpy as np

from exact_titan.data.manifest import TOKENIZER_FOLDER, Manifest, SourceRecord
from exact_titan.data.policies import POLICIES
from exact_titan.data.progress import Progress
from exact_titan.data.sources import Source
from exact_titan.data.split_writer import SplitWriter
from exact_titan.data.token_files import TokenFile, ended_documents, is_token_file, open_token_file
from exact_titan.data.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError

SHARD_TOKENS = 2**25
BATCH_BYTES = 1_500_000
BATCH_DOCUMENTS = 512
READ_AHEAD = 4
# One batch is converted to arrays while the others keep the tokenizer's threads busy, also when they are long documents
# that one thread each works on.
MAX_IN_FLIGHT = 16
SPLIT_KEY = b"exact_titan validation split"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Batch:
    """Documents on their way, as texts or as ids; ``source`` and ``validation`` have one entry per document."""

    texts: list[str]
    source: list[int]
    validation: list[bool]
    text_bytes: int
    ids: list[np.ndarray]


def pack(
    sources: Sequence[Path],
    *,
    tokenizer: Path,
    seq_len: int,
    out: Path,
    val_fraction: float = 0.0,
    workers: int = 1,
    policy: str = "concat",
    text_key: str = "text",
    eos_token: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Pack documents into windows of ``seq_len`` inputs and write the dataset to ``out``.

    The result is the same, byte for byte, for every number of workers. It is written beside ``out`` and renamed at the
    end, so that an error or an interruption leaves nothing behind.

    Args:
        sources: files and folders of documents (:mod:`exact_titan.data.sources`) and token files
            (:mod:`exact_titan.data.token_files`), in this order.
        tokenizer: Hugging Face tokenizer folder or ``tokenizer.json``; of token files, the one they were made with.
        seq_len: inputs per window, at least 2.
        out: the new folder; its missing parents are made.
        val_fraction: expected share of the documents that go to the split ``val``, in [0, 1). A document goes there
            by a hash of its text, or of its ids if it comes from a token file, so that equal documents never stand on
            both sides.
        workers: threads of the tokenizer. The library reads the number once in a process: later calls keep the first.
        policy: how documents are laid into windows, one of :data:`~exact_titan.data.policies.POLICIES`.
        text_key: key (column) of the text in .jsonl and .parquet files.
        eos_token: end-of-text token, if not the one the tokenizer names.
        shard_tokens: stored tokens after which a shard is closed.

    Returns:
        The manifest written.

    Raises:
        InputError: for a value, source or tokenizer that cannot be used, an ``out`` that exists or cannot be written,
            or a training split without a window.
    """
    _check(sources, seq_len, out, val_fraction, workers, policy)
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    opened = [open_token_file(path) if is_token_file(path) else Source(path, text_key) for path in sources]
    document_tokenizer = DocumentTokenizer(tokenizer, eos_token)

    with _new_folder(out) as folder:
        splits = ("train", "val") if val_fraction else ("train",)
        dtype = document_tokenizer.dtype
        writers = [SplitWriter(folder, split, seq_len, dtype, shard_tokens, policy) for split in splits]
        documents, tokens, short = ([0] * len(opened) for _ in range(3))
        progress = Progress()
        try:
            for batch in _tokenized(_batches(opened, val_fraction, document_tokenizer), document_tokenizer, workers):
                for ids_m, source, validation in zip(batch.ids, batch.source, batch.validation, strict=True):
                    if len(ids_m) < 2:
                        short[source] += 1
                        continue
                    documents[source] += 1
                    tokens[source] += len(ids_m)
                    writers[validation].add(ids_m)
                progress.add(len(batch.ids), sum(map(len, batch.ids)), batch.text_bytes)
        finally:
            progress.close()
        records = {split: writer.finish() for split, writer in zip(splits, writers, strict=True)}
        if records["train"] is None:
            raise InputError(
                f"the training split has no window: {sum(documents)} documents were packed and all went to validation; "
                "give more documents or a smaller --val-fraction"
            )
        document_tokenizer.save(folder / TOKENIZER_FOLDER)
        manifest = Manifest(
            sources=[
                SourceRecord(
                    name=source.name,
                    files=len(source.files),
                    bytes=source.bytes,
                    sha256=source.sha256,
                    documents=documents[index],
                    tokens=tokens[index],
                    dropped=({"no text": source.no_text} if isinstance(source, Source) else {})
                    | {"shorter than two tokens": short[index]},
                )
                for index, source in enumerate(opened)
            ],
            tokenizer=document_tokenizer.record,
            window=seq_len,
            policy=policy,
            token_dtype=str(dtype),
            val_fraction=val_fraction,
            splits={split: record for split, record in records.items() if record is not None},
        )
        manifest.write(folder)
    return manifest


def _check(sources: Sequence[Path], seq_len: int, out: Path, val_fraction: float, workers: int, policy: str) -> None:
    if not sources:
        raise InputError("no source given: name files or folders of documents to pack")
    for path in sources:
        if path.suffix == ".idx" and path.with_suffix(".bin") in sources:
            raise InputError(f"{path.with_suffix('.bin')} and {path.name} are one source: give one of them")
    if seq_len < 2:
        raise InputError(f"--seq-len is {seq_len}: a window has at least 2 tokens")
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val-fraction is {val_fraction}: it is a share of the documents, from 0 to below 1")
    if workers < 1:
        raise InputError(f"--workers is {workers}: give 1 or more")
    if policy not in POLICIES:
        raise InputError(f"--policy is {policy!r}: choose one of {', '.join(POLICIES)}")
    if os.path.lexists(out):
        raise InputError(f"--out {out} exists: give a new folder, or remove it")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out``, or is removed with all that was made for it."""
    missing = [parent for parent in out.parents if not parent.exists()]
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        folder.rename(out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            if parent.exists():
                parent.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"--out {out} cannot be written: {error}") from error
        raise


def _batches(
    sources: Sequence[Source | TokenFile], val_fraction: float, tokenizer: DocumentTokenizer
) -> Iterator[_Batch]:
    """All documents in order, in batches of one kind bounded by their bytes and by their number."""
    for index, source in enumerate(sources):
        batch, size = _Batch([], [], [], 0, []), 0
        for document in _documents(source, tokenizer):
            if isinstance(document, str):
                content = memoryview(document.encode())
                batch.texts.append(document)
                batch.text_bytes += content.nbytes
            else:
                content = document.data
                batch.ids.append(document)
            batch.source.append(index)
            batch.validation.append(_hash_fraction(content) < val_fraction)
            size += content.nbytes
            if size >= BATCH_BYTES or len(batch.source) == BATCH_DOCUMENTS:
                yield batch
                batch, size = _Batch([], [], [], 0, []), 0
        if batch.source:
            yield batch


def _documents(source: Source | TokenFile, tokenizer: DocumentTokenizer) -> Iterator[str] | Iterator[np.ndarray]:
    if isinstance(source, Source):
        return source.texts()
    record = tokenizer.record
    return ended_documents(source, eos_id=record.eos_id, vocab_size=record.vocab_size, dtype=tokenizer.dtype)


def _hash_fraction(document: memoryview) -> float:
    """A number in [0, 1) that depends on the document's text, or ids, alone."""
    digest = hashlib.blake2b(document, digest_size=6, key=SPLIT_KEY).digest()
    return int.from_bytes(digest, "big") / 2**48


def _tokenized(batches: Iterator[_Batch], tokenizer: DocumentTokenizer, workers: int) -> Iterator[_Batch]:
    """The batches in their order, with ids in the place of texts; one thread reads, others tokenize."""

    def encode(batch: _Batch | None) -> _Batch:
        assert batch is not None
        if batch.texts:
            batch.ids = tokenizer.encode(batch.texts)
            batch.texts = []
        return batch

    in_flight = min(workers + 1, MAX_IN_FLIGHT)
    reading, encoding = ThreadPoolExecutor(1, "reading"), ThreadPoolExecutor(in_flight, "encoding")
    try:
        ahead = _in_order(reading, lambda _: next(batches, None), repeat(None), READ_AHEAD)
        yield from _in_order(encoding, encode, takewhile(lambda batch: batch is not None, ahead), in_flight)
    finally:
        for pool in (reading, encoding):
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """``function`` of each item in the items' order, with up to ``depth`` of them under way."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
