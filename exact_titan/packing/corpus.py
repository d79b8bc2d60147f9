"""The corpus: sources with filters, caps and weights. The command line or a corpus TOML lists the sources.

A corpus TOML::

    weigh = "tokens"                  # unit of the weights: tokens (default) or documents
    tokens = 10_000_000_000           # size of the mix; default: the largest size at which no source runs out

    [[source]]
    path = "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT"   # file, folder or URL
    name = "fineweb-edu"              # name in the manifest; default: the path's last part
    weight = 6                        # weight in the mix, of all sources or of no source; default: all of the source
    files = "*.parquet"               # pattern of the relative names of a folder's files
    text_key = "text"                 # default: --text-key
    min_document_tokens = 1024        # drop shorter documents; the length includes the end-of-text token
    max_document_tokens = 1_000_000   # drop longer documents
    max_tokens = 6_000_000_000        # maximum number of tokens of the source
    max_documents = 1_000_000         # maximum number of documents of the source
    split = "val"                     # split of all documents of the source; default: by the validation fraction
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from exact_titan.documents.listing import is_url
from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.documents.token_files import is_token_file, open_token_file
from exact_titan.errors import InputError
from exact_titan.system.toml_file import parse_toml_file

UNITS = ("tokens", "documents")
SPLITS = ("train", "val")
HUB = "hf://datasets/"


@dataclass(frozen=True)
class Limit:
    """The maximum numbers of tokens and documents of a source or a part. None: any number.

    The limit selects the first documents that fit both numbers.
    """

    tokens: int | None = None
    documents: int | None = None

    def lowered(self, unit: str, amount: int) -> "Limit":
        """Return this limit with at most ``amount`` tokens or documents. ``unit`` names the number."""
        current = getattr(self, unit)
        return dataclasses.replace(self, **{unit: amount if current is None else min(current, amount)})


NO_LIMIT = Limit()


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """One source: its path and the selection of its documents. The TOML has the same keys.

    Attributes:
        path: file, folder or URL.
        name: name in the manifest. None: the path's last part.
        weight: weight in the mix, relative to the weights of the other sources. None if no source has a weight.
        files: pattern of the relative names of a folder's files.
        text_key: key (column) of the text in .jsonl and .parquet files. None: the key of the command line.
        min_document_tokens, max_document_tokens: range of the documents' lengths, with the end-of-text token. Other
            documents are dropped.
        max_tokens, max_documents: caps. The first documents are packed, in the order of the files.
        split: split of all documents of the source, ``train`` or ``val``. None: a hash of each document and the
            validation fraction of the dataset decide.
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
    split: str | None = None

    def __post_init__(self) -> None:
        # A file:// URL is a local path: links and doubles are then found.
        object.__setattr__(self, "path", self.path.removeprefix("file://"))

    @property
    def limit(self) -> Limit:
        """The source's caps."""
        return Limit(self.max_tokens, self.max_documents)

    def open(self, text_key: str) -> Source | TokenFile:
        """List the source's files.

        Raises:
            InputError: if the source has no readable file.
        """
        if is_token_file(Path(self.path)):
            if is_url(self.path):
                raise InputError(
                    f"source {self.path}: token files are read from the disk only: copy both files to the disk"
                )
            return open_token_file(Path(self.path))
        return Source(self.path, self.text_key or text_key, self.files)


@dataclass(frozen=True)
class Corpus:
    """The sources in their order.

    Attributes:
        sources: the sources.
        unit: unit of the weights, ``tokens`` or ``documents``.
        total: size of the mix in this unit. None: the largest size at which no source runs out.
        shown: the name of the corpus in messages.

    Raises:
        InputError: if the corpus has no source, a source appears twice, the weights sum to 0, only some sources have a
            weight above 0, or ``total`` is given without weights.
    """

    sources: Sequence[CorpusSource]
    unit: str = "tokens"
    total: int | None = None
    shown: str = ""

    def __post_init__(self) -> None:
        prefix = f"{self.shown}: " if self.shown else ""
        if not self.sources:
            raise InputError(f"{prefix}no source given: name files or folders of documents to pack")
        if any(not source.path for source in self.sources):
            raise InputError(f"{prefix}a source is an empty text: name a file or folder. A shell variable may be empty")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and not sum(weights):
            raise InputError(f"{prefix}the weights sum to 0: give the sources weights above 0")
        for source in self.sources:
            if weights and not source.weight:
                what = "no weight" if source.weight is None else "the weight 0"
                raise InputError(f"{prefix}source {source.path} has {what}: give it a weight above 0 or leave it out")
        if self.total is not None and not weights:
            raise InputError(
                f"{prefix}{self.unit} is the size of a mix, but no source has a weight: give each source a weight"
            )
        first: dict[tuple[str, str | None], CorpusSource] = {}
        for source in self.sources:
            if (other := first.setdefault(_location(source), source)) is not source:
                raise InputError(f"{prefix}source {other.path} appears twice: name it once")

    @property
    def is_mix(self) -> bool:
        """True if the sources have weights."""
        return self.sources[0].weight is not None

    @property
    def is_limited(self) -> bool:
        """True if the sources have weights or a source has a cap."""
        return self.is_mix or any(source.limit != NO_LIMIT for source in self.sources)

    def share(self, index: int) -> Fraction:
        """Return the share of source ``index`` in the mix, from 0 to 1."""
        weights = [source.weight or Fraction(0) for source in self.sources]
        return weights[index] / sum(weights)

    def mirrored(self, mirror: Path | None) -> "Corpus":
        """Return the corpus with the paths of local copies of the Hugging Face hub's datasets.

        ``mirror/OWNER/NAME/…`` replaces ``hf://datasets/OWNER/NAME/…``. If ``mirror`` is None, nothing changes.
        """
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
        """Make a corpus of files, folders and URLs, each packed whole, or read the corpus of one corpus TOML."""
        if any(str(path).lower().endswith(".toml") for path in paths):
            if len(paths) > 1:
                raise InputError(f"{paths[0]} …: a corpus TOML lists all sources, give it alone")
            return read_corpus(Path(paths[0]))
        given = set(map(Path, paths))
        for path in map(Path, paths):
            if path.suffix == ".idx" and path.with_suffix(".bin") in given:
                raise InputError(f"{path.with_suffix('.bin')} and {path.name} are one source: give one of them")
        return cls([CorpusSource(path=str(path)) for path in paths])


def read_corpus(file: Path) -> Corpus:
    """Read a corpus TOML.

    Raises:
        InputError: if the file is not a corpus TOML. The error names the file and the key.
    """
    try:
        content = parse_toml_file(file)
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
        raise InputError(
            f"{file}: there is no key {next(iter(content))!r}: the known keys are weigh, {unit} and [[source]]"
        )
    return Corpus(
        [_source(entry, f"{file}: source {number}") for number, entry in enumerate(entries, 1)], unit, total, str(file)
    )


def _source(entry: dict[str, Any], where: str) -> CorpusSource:
    known = [field.name for field in dataclasses.fields(CorpusSource)]
    for key, value in entry.items():
        if key not in known:
            raise InputError(f"{where}: there is no key {key!r}: the known keys are {', '.join(known)}")
        if key in ("path", "name", "files", "text_key"):
            if not isinstance(value, str) or not value:
                raise InputError(f"{where}: {key} is {value!r}: it must be a text")
        elif key == "split":
            if value not in SPLITS:
                raise InputError(f"{where}: split is {value!r}: choose one of {', '.join(SPLITS)}")
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
    """Convert a TOML number to the exact fraction of its decimal text: 0.1 is 1/10."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{where}: weight is {value!r}: it must be a number above 0")
    return Fraction(str(value))


def _positive(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{what} is {value!r}: it must be an integer above 0")
    return value


def _location(source: CorpusSource) -> tuple[str, str | None]:
    if is_url(source.path) or "\0" in source.path:  # the opening of the source refuses the character
        return source.path.rstrip("/"), source.files
    return str(Path(source.path).resolve()), source.files
