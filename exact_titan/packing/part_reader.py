"""Read the documents of one part of a corpus, in batches of one source.

1. :class:`PartReader` opens the files of the part one after another.
2. It yields the documents, the digests of the files, and the numbers of rows without a document, as items.
3. :meth:`PartReader.batches` collects the items in batches, and decides the split of every document.
"""

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np

from exact_titan.documents.digests import FileDigest
from exact_titan.documents.instructions import Instructions, Sample
from exact_titan.documents.sample_tokenizer import SampleTokenizer
from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.documents.token_files import ended_documents
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.packing.parts import Part, Piece

BATCH_BYTES = 1_500_000
BATCH_DOCUMENTS = 512
SPLIT_KEY = b"exact_titan validation split"


@dataclass
class Batch:
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


class PartReader:
    """Reads the documents of one part.

    Args:
        part: the part.
        opened: the opened sources, by index.
        tokenizer: the tokenizer. Its ids bound the ids of token files.
        sample_tokenizer: the tokenizer of instructions. None: the sources are documents.
    """

    def __init__(
        self,
        part: Part,
        opened: dict[int, Source | TokenFile],
        tokenizer: DocumentTokenizer,
        sample_tokenizer: SampleTokenizer | None,
    ) -> None:
        self._part, self._opened, self._tokenizer = part, opened, tokenizer
        self._sample_tokenizer = sample_tokenizer

    def batches(self) -> Generator[Batch, None, None]:
        """Collect the reader's items in batches of one source. Bytes and documents of a batch are bounded."""
        batch, size = None, 0
        for item in self._read():
            if batch is not None and (
                batch.source != item.source or size >= BATCH_BYTES or len(batch.validation) == BATCH_DOCUMENTS
            ):
                yield batch
                batch = None
            if batch is None:
                batch, size = Batch(item.source), 0
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


def _hash_fraction(document: memoryview) -> float:
    """Return a number in [0, 1) that depends only on the document's text, or on its ids."""
    digest = hashlib.blake2b(document, digest_size=6, key=SPLIT_KEY).digest()
    return int.from_bytes(digest, "big") / 2**48
