"""The same data must not enter a dataset twice.

While packing, the identity of a file is its place on the disk: two names, spellings or links of one file have one
place. In a dataset, the identity of a file is the digest of its content: the manifest keeps the digests.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from exact_titan.dataset.manifest import Manifest
from exact_titan.documents.file_kinds import uncompressed
from exact_titan.documents.listing import is_url
from exact_titan.documents.sources import Source, place_of
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.errors import InputError
from exact_titan.packing.corpus import Corpus

KNOWN = "in the dataset already"


def check_places(corpus: Corpus, opened: Sequence[Source | TokenFile]) -> None:
    """Check that no file is read twice.

    Raises:
        InputError: if two sources have the same file, a source has a file under two names, or a file and its compressed
            copy are next to each other. The error names both.
    """
    owners: dict[str, tuple[int, str]] = {}
    for index, source in enumerate(opened):
        for place, shown in _places(source):
            owner, first = owners.setdefault(place, (index, shown))
            if first == shown and owner == index:
                continue
            other, one = corpus.sources[owner].path, corpus.sources[index].path
            if owner == index:
                raise InputError(
                    f"{shown} and {first} are the same file: name the file once, or choose the files with the key "
                    "files of a corpus TOML"
                )
            also = "" if first == shown else f" (as {first})"
            raise InputError(f"{shown} belongs to two sources, {other}{also} and {one}: leave one source out")
    _check_compressed_copies(opened)


def _check_compressed_copies(opened: Sequence[Source | TokenFile]) -> None:
    """Check that a file and its compressed copy are not both read. zstd, xz -k and gunzip -k keep their input."""
    first: dict[str, str] = {}
    for source in opened:
        if isinstance(source, TokenFile):
            continue
        for file in source.files:
            shown = source.shown(file)
            place = source.location(file) if is_url(source.path) else os.path.normpath(source.location(file))
            other = first.setdefault(uncompressed(place), shown)
            if other != shown:
                raise InputError(
                    f"{shown} and {other} differ only in the suffix of their compression, and are probably one file: "
                    "choose with the key files of a corpus TOML, or rename a file if the documents differ"
                )


def _places(source: Source | TokenFile) -> Iterator[tuple[str, str]]:
    if isinstance(source, TokenFile):
        yield from ((place_of(file), str(file)) for file in source.files)
    else:
        yield from ((source.place(file), source.shown(file)) for file in source.files)


def leave_out_known(folder: Path, manifest: Manifest, opened: Sequence[Source | TokenFile]) -> None:
    """Leave the files that a dataset already holds out of the sources that are added to it, and count these files.

    Only files of a known size are read for their digest.

    Args:
        folder: the dataset, for messages.
        manifest: its manifest.
        opened: the sources to add. The files are removed from their sources.

    Raises:
        InputError: if the dataset holds all files of a source.
    """
    known: dict[str, str] = {}
    sizes = set()
    for record in manifest.sources:
        contents = record.contents
        if not contents and record.files == 1:  # an older dataset: the digest of a source that is one file
            contents = {record.sha256: record.bytes}
        known |= dict.fromkeys(contents, record.name)
        sizes |= set(contents.values())
    for source in opened:
        if isinstance(source, TokenFile):
            names = {known.get(digest.sha256) for digest in source.digests() if digest.name == source.name}
            if names != {None}:
                raise _known(folder, source, names.pop())
            continue
        found = {}
        for file in source.files:
            # A server may not tell the size of a file. A pipe of the local disk must not be read here.
            if file.bytes in sizes or (is_url(source.path) and not file.bytes):
                with source.open(file) as reader:
                    name = known.get(reader.digest().sha256)
                if name is not None:
                    found[file] = name
        if len(found) == len(source.files):
            raise _known(folder, source, next(iter(found.values())))
        if found:
            source.leave_out(list(found), KNOWN)


def _known(folder: Path, source: Source | TokenFile, name: str | None) -> InputError:
    return InputError(f"{folder} holds source {source.name} already (as {name}): leave it out")
