"""Pack one part of a corpus.

1. One thread reads the documents of the part in batches (:class:`PartReader`).
2. Several threads tokenize the batches. The batches keep their order.
3. The main thread filters the documents and passes each document to the writer of its split.
4. The folder of the part is renamed to its final name when the part is complete.
"""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import repeat, takewhile
from pathlib import Path
from secrets import token_hex

from exact_titan.dataset.writer import SplitWriter
from exact_titan.documents.instructions import Sample, open_template
from exact_titan.documents.sample_tokenizer import SampleTokenizer
from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.documents.token_files import ids_inside
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.packing.changes import check_unchanged
from exact_titan.packing.corpus import Limit
from exact_titan.packing.part_reader import Batch, PartReader
from exact_titan.packing.part_result import PartResult, SourceShare, part_folder
from exact_titan.packing.parts import PackOptions, Part
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

READ_AHEAD = 4


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
        self._reader = PartReader(part, opened, tokenizer, self._sample_tokenizer)
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
        read = self._reader.batches()
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

    def _write_batch(self, batch: Batch, share: SourceShare, selected: "_SelectedCount") -> int:
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

    def _encode(self, batch: Batch) -> Batch:
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


def _tokenized(
    batches: Iterator[Batch], encode: Callable[[Batch], Batch], threads: Threads
) -> Generator[Batch, None, None]:
    """Yield the batches in their order, with ids. One thread reads; other threads call ``encode``."""

    def encode_read(batch: Batch | None) -> Batch:
        assert batch is not None
        return encode(batch)

    read_batches = in_order(threads.reading, lambda _: next(batches, None), repeat(None), READ_AHEAD)
    some_batches = takewhile(lambda batch: batch is not None, read_batches)
    yield from in_order(threads.encoding, encode_read, some_batches, threads.in_flight)
