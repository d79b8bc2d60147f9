"""What is packed: sources with filters, caps and shares, as the command line names them or a corpus TOML lists them.

::

    weigh = "tokens"                  # what the weights share out: tokens (default) or documents
    tokens = 10_000_000_000           # size of the whole; default: the most for which no source runs out

    [[source]]
    path = "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT"   # file, folder or URL
    name = "fineweb-edu"              # in the manifest; default: the path's last part
    weight = 6                        # of all sources or of none; none takes all of each
    files = "*.parquet"               # of a folder, those whose relative name fits
    text_key = "text"                 # default: --text-key
    min_document_tokens = 1024        # drop shorter documents, end-of-text included
    max_document_tokens = 1_000_000   # and longer ones
    max_tokens = 6_000_000_000        # take no more than so many tokens
    max_documents = 1_000_000         # and so many documents
"""

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

from exact_titan.documents.sources import Source, is_url
from exact_titan.documents.token_files import TokenFile, is_token_file, open_token_file
from exact_titan.errors import InputError

UNITS = ("tokens", "documents")
HUB = "hf://datasets/"


@dataclass(frozen=True)
class Limit:
    """The first documents of a source, or of a part of one, that both numbers allow; None: any number."""

    tokens: int | None = None
    documents: int | None = None

    def lowered(self, unit: str, amount: int) -> "Limit":
        """This limit, and no more than ``amount`` tokens or documents."""
        current = getattr(self, unit)
        return dataclasses.replace(self, **{unit: amount if current is None else min(current, amount)})


NO_LIMIT = Limit()


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """One source: where it is and which of its documents are taken. The TOML's keys are these.

    Attributes:
        path: file, folder or URL.
        name: in the manifest; None: the path's last part.
        weight: share of the whole, beside the other sources'; None if no source has one.
        files: of a folder, pattern of the relative names.
        text_key: key (column) of the text in .jsonl and .parquet files; None: the one of the command line.
        min_document_tokens, max_document_tokens: lengths of the documents to take, end-of-text included.
        max_tokens, max_documents: take no more, in the order of the files.
    """

    path: str
    name: str | None = None
    weight: Fraction | None = None
    files: str | None = None
    text_key: str | None = None
    min_document_tokens: int | None = None
    max_document_tokens: int | None = None
    max_tokens: int | None = None
    max_documents: int | None = None

    @property
    def limit(self) -> Limit:
        """The source's caps."""
        return Limit(self.max_tokens, self.max_documents)

    def open(self, text_key: str) -> Source | TokenFile:
        """List the source's files.

        Raises:
            InputError: if there is nothing that can be read.
        """
        if is_token_file(Path(self.path)):
            if is_url(self.path):
                raise InputError(f"source {self.path}: token files are read from the disk only: copy both files here")
            return open_token_file(Path(self.path))
        return Source(self.path, self.text_key or text_key, self.files)


@dataclass(frozen=True)
class Corpus:
    """The sources in their order, what their weights share out, and how much of that is taken in all.

    Raises:
        InputError: for weights that sum to 0 or that only some sources have, or a source that appears twice.
    """

    sources: Sequence[CorpusSource]
    unit: str = "tokens"
    total: int | None = None
    shown: str = ""

    def __post_init__(self) -> None:
        prefix = f"{self.shown}: " if self.shown else ""
        if not self.sources:
            raise InputError(f"{prefix}no source given: name files or folders of documents to pack")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and not sum(weights):
            raise InputError(f"{prefix}the weights sum to 0: give the sources weights above 0")
        for source in self.sources:
            if weights and not source.weight:
                what = "no weight" if source.weight is None else "the weight 0"
                raise InputError(f"{prefix}source {source.path} has {what}: give it one above 0 or leave it out")
        if self.total is not None and not weights:
            raise InputError(f"{prefix}{self.unit} is the size of a mix, but no source has a weight: give each one")
        for one, other in combinations(self.sources, 2):
            if _location(one) == _location(other):
                raise InputError(f"{prefix}source {one.path} appears twice: name it once")

    @property
    def is_mix(self) -> bool:
        """Whether the sources have weights."""
        return self.sources[0].weight is not None

    @property
    def is_limited(self) -> bool:
        """Whether some source is not taken whole."""
        return self.is_mix or any(source.limit != NO_LIMIT for source in self.sources)

    def share(self, index: int) -> Fraction:
        """Of the whole, what source ``index`` of a mix is to have."""
        weights = [source.weight or Fraction(0) for source in self.sources]
        return weights[index] / sum(weights)

    def mirrored(self, mirror: Path | None) -> "Corpus":
        """With the datasets of the Hugging Face hub read from their copies in a folder, ``mirror/OWNER/NAME/…``."""
        if mirror is None:
            return self
        sources = [
            dataclasses.replace(source, path=str(mirror / source.path.removeprefix(HUB)))
            if source.path.startswith(HUB)
            else source
            for source in self.sources
        ]
        return dataclasses.replace(self, sources=sources)

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> "Corpus":
        """Of files, folders and URLs, all of each; or of one corpus TOML."""
        if any(str(path).endswith(".toml") for path in paths):
            if len(paths) > 1:
                raise InputError(f"{paths[0]} …: a corpus TOML lists all sources, give it alone")
            return read_corpus(Path(paths[0]))
        for path in map(Path, paths):
            if path.suffix == ".idx" and path.with_suffix(".bin") in list(map(Path, paths)):
                raise InputError(f"{path.with_suffix('.bin')} and {path.name} are one source: give one of them")
        return cls([CorpusSource(path=str(path)) for path in paths])


def read_corpus(file: Path) -> Corpus:
    """Read a corpus TOML.

    Raises:
        InputError: naming the file and the key, for what is no corpus.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not TOML: {error}") from error
    unit = content.pop("weigh", "tokens")
    if unit not in UNITS:
        raise InputError(f"{file}: weigh is {unit!r}: choose one of {', '.join(UNITS)}")
    entries = content.pop("source", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: source is no list of tables: begin each source with [[source]]")
    total = _positive(content.pop(unit), f"{file}: {unit}") if unit in content else None
    if content:
        raise InputError(f"{file}: there is no key {next(iter(content))!r}: known are weigh, {unit} and [[source]]")
    return Corpus(
        [_source(entry, f"{file}: source {number}") for number, entry in enumerate(entries, 1)], unit, total, str(file)
    )


def _source(entry: dict[str, Any], where: str) -> CorpusSource:
    known = [field.name for field in dataclasses.fields(CorpusSource)]
    for key, value in entry.items():
        if key not in known:
            raise InputError(f"{where}: there is no key {key!r}: known are {', '.join(known)}")
        if key in ("path", "name", "files", "text_key"):
            if not isinstance(value, str) or not value:
                raise InputError(f"{where}: {key} is {value!r}: it must be a text")
        elif key == "weight":
            entry = entry | {"weight": _weight(value, where)}
        else:
            _positive(value, f"{where}: {key}")
    if "path" not in entry:
        raise InputError(f"{where} has no path: name its file, folder or URL")
    source = CorpusSource(**entry)
    shortest, longest = source.min_document_tokens, source.max_document_tokens
    if shortest is not None and longest is not None and shortest > longest:
        raise InputError(f"{where}: min_document_tokens is {shortest}, more than max_document_tokens, {longest}")
    return source


def _weight(value: Any, where: str) -> Fraction:
    """A TOML number as what was written: 0.1 is a tenth."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{where}: weight is {value!r}: it must be a number above 0")
    return Fraction(str(value))


def _positive(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{what} is {value!r}: it must be an integer above 0")
    return value


def _location(source: CorpusSource) -> tuple[str, str | None]:
    if is_url(source.path):
        return source.path.rstrip("/"), source.files
    return str(Path(source.path).resolve()), source.files
