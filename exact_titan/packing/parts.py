"""Divide a corpus into parts. A task reads, tokenizes and lays out one part independently of all other parts.

The parts depend only on the sources. The dataset is therefore the same for any number of tasks, workers and machines.

A part is a sequence of whole files, or of documents of a token file. The key of a part is the digest of everything that
the part's result depends on. An interrupted packing finds its finished parts by their keys. A part with changed files
or options has another key.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from exact_titan.documents.listing import SourceFile
from exact_titan.documents.sources import Source
from exact_titan.documents.special_tokens import SpecialTokens
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.packing.corpus import NO_LIMIT, Corpus, CorpusSource, Limit
from exact_titan.packing.doubles import check_places

PART_BYTES = 2**29
"""Maximum number of a part's bytes on the disk. A single larger file is also a part."""


@dataclass(frozen=True)
class PackOptions:
    """The options that the result of every part depends on, in addition to the documents.

    ``tokenizer`` is the path as the user gave the path. ``tokenizer_sha256`` is the digest of the tokenizer's file.
    ``template`` is the template of instructions with its digest, or empty for documents.
    :func:`exact_titan.packing.pack` describes the other options.
    """

    tokenizer: str
    tokenizer_sha256: str
    eos_token: str
    seq_len: int
    policy: str
    val_fraction: float
    text_key: str
    shard_tokens: int
    template: str = ""
    template_sha256: str = ""
    special_tokens: SpecialTokens = "text"
    split_at_eos: bool = False


@dataclass(frozen=True)
class Piece:
    """A file of a source, or the documents ``first … last - 1`` of a token file.

    ``source`` is the index of the source. ``bytes`` is the size on the disk. ``versions`` are the versions of both
    files of a token file (:func:`file_version`).
    """

    source: int
    bytes: int
    file: SourceFile | None = None
    first: int = 0
    last: int = 0
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Consecutive pieces, and the limit of their documents.

    ``number`` is the number of the part in the corpus, from 0. In a corpus with limits, all pieces of a part belong to
    one source.
    """

    number: int
    sources: dict[int, CorpusSource]
    pieces: tuple[Piece, ...]
    options: PackOptions
    limit: Limit = NO_LIMIT

    @property
    def bytes(self) -> int:
        """Size on the disk."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def is_cut(self) -> bool:
        """True if the part has a limit."""
        return self.limit != NO_LIMIT

    @property
    def source(self) -> int:
        """Index of the source of the first piece."""
        return self.pieces[0].source

    @property
    def key(self) -> str:
        """Digest (hex) of everything that the part's result depends on."""
        # The result depends on the part's limit, not on the caps and weights of the sources.
        sources = {
            index: replace(source, name=None, weight=None, max_tokens=None, max_documents=None)
            for index, source in self.sources.items()
        }
        content = asdict(replace(self, number=0, sources=sources))
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:40]


def file_version(found: os.stat_result) -> str:
    """Return a text that changes when the file changes: size and modification time, as of a :class:`SourceFile`."""
    return f"{found.st_size} {found.st_mtime_ns}"


def divide_into_parts(
    corpus: Corpus, opened: Sequence[Source | TokenFile], options: PackOptions, part_bytes: int = PART_BYTES
) -> list[Part]:
    """Divide a corpus into parts, in the order of its documents.

    Args:
        corpus: the corpus. If its sources have limits, a part has pieces of one source only.
        opened: the opened sources of the corpus.
        options: options of every part.
        part_bytes: maximum size of a part. Only a part of a single larger file exceeds this size.

    Raises:
        InputError: if a file would be read twice.
    """
    check_places(corpus, opened)
    parts: list[Part] = []
    pieces: list[Piece] = []

    def close() -> None:
        if pieces:
            sources = {piece.source: corpus.sources[piece.source] for piece in pieces}
            parts.append(Part(len(parts), sources, tuple(pieces), options))
            pieces.clear()

    for piece in _pieces(opened, part_bytes):
        other_source = corpus.is_limited and bool(pieces) and pieces[-1].source != piece.source
        if other_source or sum(one.bytes for one in pieces) + piece.bytes > part_bytes:
            close()
        pieces.append(piece)
    close()
    return parts


def _pieces(opened: Sequence[Source | TokenFile], part_bytes: int) -> Iterator[Piece]:
    for index, source in enumerate(opened):
        if isinstance(source, TokenFile):
            versions = tuple(file_version(file.stat()) for file in source.files)
            for first, last, size in source.ranges(part_bytes):
                yield Piece(index, size, first=first, last=last, versions=versions)
            continue
        for file in source.files:
            yield Piece(index, file.bytes, file)
