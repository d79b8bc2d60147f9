"""Pack one part of a corpus.

1. One thread reads the documents of the part, and collects documents of one source in batches.
2. Several threads tokenize the batches. The batches keep their order.
3. The main thread filters the documents and passes each document to the writer of its split.
4. The folder of the part is renamed to its final name when the part is complete.
"""

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import repeat, takewhile
from pathlib import Path
from secrets import token_hex

import numpy as np

from exact_titan.dataset.writer import SplitWriter
from exact_titan.documents.digests import FileDigest
from exact_titan.documents.instructions import Instructions, Sample, open_template
from exact_titan.documents.sample_tokenizer import SampleTokenizer
from exact_titan.documents.sources import Source
from exact_titan.documents.token_files import TokenFile, ended_documents, ids_inside
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.packing.changes import check_unchanged
from exact_titan.packing.corpus import Limit
from exact_titan.packing.part_result import PartResult, SourceShare, part_folder
from exact_titan.packing.parts import PackOptions, Part, Piece
from exact_titan.packing.progress import Tally
from exact_titan.packing.reasons import (
    INSIDE,
    MOST_INSIDE,
    MOST_NAMES,
    NO_TEXT,
    SPELLED,
    TOO_LONG,
    UNANSWERED,
    possible_reasons,
    reason_to_drop,
)
from exact_titan.packing.threads import Threads, in_order
from exact_titan.system.atomic_files import publish

BATCH_BYTES = 1_500_000
BATCH_DOCUMENTS = 512
READ_AHEAD = 4
SPLIT_KEY = b"exact_titan validation split"


def pack_part(
    part: Part,
    opened: dict[int, Source | TokenFile],
    tokenizer: DocumentTokenizer,
    parts: Path,
    *,
    workers: int,
    tally: Tally,
) -> None:
    """Pack one part into its folder inside ``parts``.

    The part is written to a temporary folder. The folder is written through to the disk and renamed at the end. The
    folder of a part is therefore always complete, also after a power cut. Two tasks can pack the same part at the same
    time.

    Args:
        part: the part.
        opened: the opened sources, by index.
        tokenizer: the tokenizer of the part's options.
        parts: folder of all parts.
        workers: number of the tokenizer's threads. The tokenizers library reads the number once per process. Later
            calls in the process keep the first number.
        tally: counts every batch.

    Raises:
        InputError: if a file cannot be read or written, or has changed since the corpus was divided into parts.
    """
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    folder = parts / f"{part.key}.{socket.gethostname()}.{os.getpid()}.{token_hex(4)}"
    try:
        folder.mkdir()
        try:
            result = _Packer(part, opened, tokenizer, folder, workers, tally).run()
        except InputError:
            check_unchanged(part, opened)  # a file that changes may look broken
            raise
        check_unchanged(part, opened)
        result.write(folder)
        try:
            publish(folder, part_folder(parts, part))
        except OSError:
            # Another task finished the part first, or the old folder is incomplete because a shard was moved out.
            if PartResult.read(part_folder(parts, part)) is None:
                shutil.rmtree(part_folder(parts, part), ignore_errors=True)
                publish(folder, part_folder(parts, part))
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise InputError(f"{parts.parent} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Batch:
    """A batch of documents of one source, as texts, as samples of instructions or as ids.

    ``validation`` has one entry per document. ``spells`` says which texts spell a special token. ``unsupervised`` has
    the number of first labels without a loss of every sample. ``read`` is the number of the part's bytes that were read
    up to the end of the batch. ``no_text`` is the number of documents without text since the batch before, and
    ``unanswered`` the number of messages without an answer. ``files`` are the files that were read since the batch
    before.
    """

    source: int
    texts: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    validation: list[bool] = field(default_factory=list)
    spells: list[bool] = field(default_factory=list)
    text_bytes: int = 0
    ids: list[np.ndarray] = field(default_factory=list)
    unsupervised: list[int] = field(default_factory=list)
    read: float = 0.0
    no_text: int = 0
    unanswered: int = 0
    files: list[FileDigest] = field(default_factory=list)


@dataclass(slots=True)
class _ReadItem:
    """An item from the reader: a document as text, sample or ids, the digest of a file, or a number of left out texts.

    ``read`` is the number of the part's bytes that have been read so far.
    """

    source: int
    read: float
    document: str | Sample | np.ndarray | None = None
    no_text: int = 0
    unanswered: int = 0
    file: FileDigest | None = None


class _Packer:
    """Packs one part into an existing folder."""

    def __init__(
        self,
        part: Part,
        opened: dict[int, Source | TokenFile],
        tokenizer: DocumentTokenizer,
        folder: Path,
        workers: int,
        tally: Tally,
    ) -> None:
        options = part.options
        self._part, self._opened, self._tokenizer = part, opened, tokenizer
        self._workers, self._tally = workers, tally
        self._sample_tokenizer = _sample_tokenizer(options, tokenizer)
        has_val = options.val_fraction or any(source.split == "val" for source in part.sources.values())
        self._splits = ("train", "val") if has_val else ("train",)
        self._writers = [
            SplitWriter(
                folder,
                split,
                options.seq_len,
                tokenizer.dtype,
                options.shard_tokens,
                options.policy,
                masked=bool(options.template),
            )
            for split in self._splits
        ]
        self._shares = {
            index: SourceShare(dropped=dict.fromkeys(possible_reasons(source, opened[index], options), 0))
            for index, source in part.sources.items()
        }

    def run(self) -> PartResult:
        selected = _SelectedCount(self._part.limit)
        read = self._batches()
        threads = Threads(self._workers)
        batches = _tokenized(read, self._encode, threads)
        wait = True
        try:
            for batch in batches:
                share = self._shares[batch.source]
                share.files += batch.files
                tokens = self._write_batch(batch, share, selected)
                self._tally.add(len(batch.ids), tokens, batch.text_bytes, batch.read)
                if selected.is_full:
                    break
        except (KeyboardInterrupt, SystemExit):
            # A thread may wait for a slow store or a pipe. The process ends without the thread.
            wait = False
            raise
        finally:
            threads.stop(wait=wait)
            if wait:
                read.close()  # no thread uses the reader any more
        self._check_token_files()
        records = {split: writer.finish() for split, writer in zip(self._splits, self._writers, strict=True)}
        return PartResult(
            {str(index): share for index, share in self._shares.items()},
            {split: record for split, record in records.items() if record is not None},
        )

    def _check_token_files(self) -> None:
        """Refuse token files of packed samples: their documents end inside the samples."""
        for index, share in self._shares.items():
            inside = share.remarks.get(INSIDE, 0)
            if isinstance(self._opened[index], TokenFile) and inside > MOST_INSIDE * share.documents:
                raise InputError(
                    f"source {self._part.sources[index].path}: {inside:,} of {share.documents:,} documents have "
                    f"end-of-text ids inside, more than {100 * MOST_INSIDE:g} %: give --split-at-eos to end a document "
                    "at each of these ids, or name another end-of-text token with --eos-token"
                )

    def _write_batch(self, batch: _Batch, share: SourceShare, selected: "_SelectedCount") -> int:
        """Write the batch's documents up to the part's limit. Return the number of their tokens."""
        source = self._part.sources[batch.source]
        before = share.tokens
        spelled = SPELLED[self._part.options.special_tokens]
        for index, (ids_m, validation) in enumerate(zip(batch.ids, batch.validation, strict=True)):
            if (reason := reason_to_drop(len(ids_m), source)) is not None:
                share.dropped[reason] += 1
                continue
            if batch.samples and self._is_too_long(batch.samples[index], len(ids_m), share):
                continue
            if not selected.add(len(ids_m)):
                share.next_tokens = len(ids_m)
                break
            share.documents += 1
            share.tokens += len(ids_m)
            if ids_inside(ids_m, self._tokenizer.record.eos_id):
                share.remarks[INSIDE] = share.remarks.get(INSIDE, 0) + 1
            if batch.spells and batch.spells[index]:
                share.remarks[spelled] = share.remarks.get(spelled, 0) + 1
            self._writers[validation].add(ids_m, batch.unsupervised[index] if batch.samples else 0)
        else:
            for reason, number in ((NO_TEXT, batch.no_text), (UNANSWERED, batch.unanswered)):
                if number:
                    share.dropped[reason] += number
        share.rows += sum(sample.begins_row for sample in batch.samples)
        return share.tokens - before

    def _is_too_long(self, sample: Sample, tokens: int, share: SourceShare) -> bool:
        """Return whether a sample does not fit a window, and count and name the sample."""
        if tokens - 1 <= self._part.options.seq_len:
            return False
        share.dropped[TOO_LONG] += 1
        if len(share.too_long) < MOST_NAMES:
            share.too_long.append(f"{sample.name} ({tokens:,} tokens)")
        return True

    def _encode(self, batch: _Batch) -> _Batch:
        """Tokenize the texts or samples of a batch. Several threads call the method."""
        if batch.texts:
            batch.spells = [self._tokenizer.spells_special(text) for text in batch.texts]
            try:
                batch.ids = self._tokenizer.encode(batch.texts)
            except InputError as error:
                raise InputError(f"source {self._part.sources[batch.source].path}: {error}") from error
            batch.texts = []
        if batch.samples:
            assert self._sample_tokenizer is not None
            tokenized = self._sample_tokenizer.encode(batch.samples)
            batch.ids = [sample.ids_m for sample in tokenized]
            batch.unsupervised = [sample.unsupervised for sample in tokenized]
        return batch

    def _batches(self) -> Generator[_Batch, None, None]:
        """Collect the reader's items in batches of one source. Bytes and documents of a batch are bounded."""
        batch, size = None, 0
        for item in self._read():
            if batch is not None and (
                batch.source != item.source or size >= BATCH_BYTES or len(batch.validation) == BATCH_DOCUMENTS
            ):
                yield batch
                batch = None
            if batch is None:
                batch, size = _Batch(item.source), 0
            batch.read = item.read
            batch.no_text += item.no_text
            batch.unanswered += item.unanswered
            if item.file is not None:
                batch.files.append(item.file)
            if isinstance(item.document, str):
                content = memoryview(item.document.encode())
                batch.texts.append(item.document)
                batch.text_bytes += content.nbytes
            elif isinstance(item.document, Sample):
                # All samples of a row are in the same split.
                content = memoryview(item.document.row.encode())
                batch.samples.append(item.document)
                batch.text_bytes += len(item.document.prompt.encode()) + len(item.document.response.encode())
            elif item.document is not None:
                content = item.document.data
                batch.ids.append(item.document)
            else:
                continue
            batch.validation.append(self._is_validation(item.source, content))
            size = max(size + content.nbytes, batch.text_bytes)
        if batch is not None:
            yield batch

    def _is_validation(self, source: int, document: memoryview) -> bool:
        split = self._part.sources[source].split
        return _hash_fraction(document) < self._part.options.val_fraction if split is None else split == "val"

    def _read(self) -> Iterator[_ReadItem]:
        """Read the documents and files of all pieces, in their order."""
        begin = 0.0
        for piece in self._part.pieces:
            source = self._opened[piece.source]
            read_piece = self._read_ids if isinstance(source, TokenFile) else self._read_texts
            yield from read_piece(source, piece, begin)  # type: ignore[arg-type]
            begin += piece.bytes

    def _read_texts(self, source: Source, piece: Piece, begin: float) -> Iterator[_ReadItem]:
        assert piece.file is not None
        with source.open(piece.file) as reader:
            # The reading of a cut part may stop inside a file. The file's digest is therefore computed first, in a
            # separate reading of the whole file.
            if self._part.is_cut:
                yield _ReadItem(piece.source, begin, file=reader.digest())
            end = begin + piece.bytes
            if self._sample_tokenizer is None:
                for text in reader.texts():
                    yield _ReadItem(piece.source, begin + reader.progress * piece.bytes, text)
                yield _ReadItem(piece.source, end, no_text=reader.no_text)
            else:
                name = f"{source.name}/{piece.file.name}" if source.is_folder else piece.file.name
                template, letters = self._sample_tokenizer.template, self._sample_tokenizer.letters
                instructions = Instructions(name, source.shown(piece.file), template, letters)
                for sample in instructions.samples(reader.rows()):
                    yield _ReadItem(piece.source, begin + reader.progress * piece.bytes, sample)
                yield _ReadItem(piece.source, end, unanswered=instructions.unanswered)
            if not self._part.is_cut:
                yield _ReadItem(piece.source, end, file=reader.digest())

    def _read_ids(self, source: TokenFile, piece: Piece, begin: float) -> Iterator[_ReadItem]:
        if piece.first == 0:
            for file in source.digests():
                yield _ReadItem(piece.source, begin, file=file)
        record = self._tokenizer.record
        documents = ended_documents(
            source,
            eos_id=record.eos_id,
            vocab_size=record.vocab_size,
            dtype=self._tokenizer.dtype,
            first=piece.first,
            last=piece.last,
            split_at_eos=self._part.options.split_at_eos,
        )
        read = 0
        for ids_m in documents:
            read += len(ids_m) * source.dtype.itemsize
            yield _ReadItem(piece.source, begin + min(read, piece.bytes), ids_m)


@dataclass
class _SelectedCount:
    """The numbers of documents and tokens selected so far, up to a limit."""

    limit: Limit
    documents: int = 0
    tokens: int = 0
    is_full: bool = False

    def add(self, tokens: int) -> bool:
        """Select the next document if it fits the limit. After the first document that does not fit, select no more."""
        most_tokens, most_documents = self.limit.tokens, self.limit.documents
        self.is_full |= most_tokens is not None and self.tokens + tokens > most_tokens
        self.is_full |= most_documents is not None and self.documents == most_documents
        if not self.is_full:
            self.documents += 1
            self.tokens += tokens
        return not self.is_full


def _sample_tokenizer(options: PackOptions, tokenizer: DocumentTokenizer) -> SampleTokenizer | None:
    """Return the tokenizer of instructions. None for documents."""
    if not options.template:
        return None
    template = open_template(options.template, Path(options.tokenizer))
    if template.sha256 != options.template_sha256:
        raise InputError(
            f"the template of --tokenizer {options.tokenizer} has changed since packing began: start again"
        )
    return SampleTokenizer(tokenizer, template)


def _hash_fraction(document: memoryview) -> float:
    """Return a number in [0, 1) that depends only on the document's text, or on its ids."""
    digest = hashlib.blake2b(document, digest_size=6, key=SPLIT_KEY).digest()
    return int.from_bytes(digest, "big") / 2**48


def _tokenized(
    batches: Iterator[_Batch], encode: Callable[[_Batch], _Batch], threads: Threads
) -> Generator[_Batch, None, None]:
    """Yield the batches in their order, with ids. One thread reads; other threads call ``encode``."""

    def encode_read(batch: _Batch | None) -> _Batch:
        assert batch is not None
        return encode(batch)

    read_batches = in_order(threads.reading, lambda _: next(batches, None), repeat(None), READ_AHEAD)
    some_batches = takewhile(lambda batch: batch is not None, read_batches)
    yield from in_order(threads.encoding, encode_read, some_batches, threads.in_flight)
