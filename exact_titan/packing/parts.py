"""The parts of a corpus: what one task reads, tokenizes and lays into windows by itself.

Which parts there are follows from the sources alone, so that a dataset is the same whatever the number of tasks,
workers and machines. A part is a run of whole files, or of a token file's documents; it is known by a key, the digest
of all that its result depends on, so that what is finished is found again and what has changed is not taken for it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from exact_titan.documents.sources import Source, SourceFile
from exact_titan.documents.token_files import TokenFile
from exact_titan.errors import InputError
from exact_titan.packing.corpus import NO_LIMIT, Corpus, CorpusSource, Limit

PART_BYTES = 2**29
"""A part takes no further file once it would hold more bytes than this, as they lie on the disk."""


@dataclass(frozen=True)
class PackOptions:
    """What the result of every part depends on, beside its documents.

    ``tokenizer`` is the path as it was given, ``tokenizer_sha256`` says what was there. See
    :func:`exact_titan.packing.pack` for the others.
    """

    tokenizer: str
    tokenizer_sha256: str
    eos_token: str
    seq_len: int
    policy: str
    val_fraction: float
    text_key: str
    shard_tokens: int


@dataclass(frozen=True)
class Piece:
    """A file of a source, or the documents ``first … last - 1`` of a token file; ``bytes`` on the disk."""

    source: int
    bytes: int
    file: SourceFile | None = None
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Part:
    """Some pieces, which follow one another, and how many of their documents are taken.

    ``number`` counts the parts of a corpus from 0. In a corpus with limits all pieces are of one source.
    """

    number: int
    sources: dict[int, CorpusSource]
    pieces: tuple[Piece, ...]
    options: PackOptions
    limit: Limit = NO_LIMIT

    @property
    def bytes(self) -> int:
        """Bytes on the disk."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def is_cut(self) -> bool:
        """Whether only some of its documents are taken."""
        return self.limit != NO_LIMIT

    @property
    def source(self) -> int:
        """The source of its first piece."""
        return self.pieces[0].source

    @property
    def key(self) -> str:
        """Hex digest of all that its result depends on."""
        # How much the dataset takes of a source is said by the limit.
        sources = {
            index: replace(source, name=None, weight=None, max_tokens=None, max_documents=None)
            for index, source in self.sources.items()
        }
        content = asdict(replace(self, number=0, sources=sources))
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:40]


def divide_into_parts(
    corpus: Corpus, opened: Sequence[Source | TokenFile], options: PackOptions, part_bytes: int = PART_BYTES
) -> list[Part]:
    """The parts of a corpus, in the order of its documents.

    Args:
        corpus: what is packed. If its sources have limits, a part has pieces of one source only.
        opened: its sources.
        options: of every part.
        part_bytes: size of a part, which only a single larger file exceeds.

    Raises:
        InputError: if a file belongs to two sources.
    """
    parts: list[Part] = []
    pieces: list[Piece] = []

    def close() -> None:
        if pieces:
            sources = {piece.source: corpus.sources[piece.source] for piece in pieces}
            parts.append(Part(len(parts), sources, tuple(pieces), options))
            pieces.clear()

    for piece in _pieces(corpus, opened, part_bytes):
        other_source = corpus.is_limited and bool(pieces) and pieces[-1].source != piece.source
        if other_source or sum(one.bytes for one in pieces) + piece.bytes > part_bytes:
            close()
        pieces.append(piece)
    close()
    return parts


def _pieces(corpus: Corpus, opened: Sequence[Source | TokenFile], part_bytes: int) -> Iterator[Piece]:
    owners: dict[str, str] = {}
    for index, (source, entry) in enumerate(zip(opened, corpus.sources, strict=True)):
        if isinstance(source, TokenFile):
            for first, last, size in source.ranges(part_bytes):
                yield Piece(index, size, first=first, last=last)
            continue
        for file in source.files:
            owner = owners.setdefault(source.location(file), entry.path)
            if owner != entry.path:
                raise InputError(
                    f"{source.shown(file)} belongs to two sources, {owner} and {entry.path}: leave one out"
                )
            yield Piece(index, file.bytes, file)
