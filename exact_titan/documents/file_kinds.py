"""The kinds of files that a source reads, and the reasons to pass over the other files of a folder."""

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch, fnmatchcase

from exact_titan.documents.token_files import SUFFIXES as TOKEN_SUFFIXES

TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".txt")
"""Formats that may be compressed."""
FORMATS = (*TEXT_FORMATS, ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
KINDS = f"{', '.join(FORMATS)}; text also with {', '.join(COMPRESSIONS)}"

HIDDEN = "hidden or temporary: the name begins with . or _"
TOKENS = "token files: name each file as a source"
DATASETS = "descriptions that the library datasets writes"
CACHES = "results that the library datasets keeps: cache-*.arrow"
PACKED = "packed datasets"
LOOP = "links to a folder above"
SPECIAL = "no regular file"
EMPTY = "empty"
_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_MOST_SUFFIXES = 8


@dataclass(frozen=True)
class FileKind:
    """The format of a file, of :data:`FORMATS`, and its compression, of :data:`COMPRESSIONS` or empty."""

    format: str
    compression: str


def kind_of(name: str) -> FileKind | None:
    """Return the kind of a file by the suffixes of its name, in upper or lower case. None: not a readable kind."""
    lower = name.lower()
    for suffix in FORMATS:
        if lower.endswith(suffix):
            return FileKind(suffix, "")
    for compression in COMPRESSIONS:
        for suffix in TEXT_FORMATS:
            if lower.endswith(suffix + compression):
                return FileKind(suffix, compression)
    return None


def uncompressed(name: str) -> str:
    """Return the name that a file of a compressed text format has without its compression. Other names are the same."""
    kind = kind_of(name)
    return name[: -len(kind.compression)] if kind is not None and kind.compression else name


def is_hidden(name: str) -> bool:
    """Return whether a part of a relative path begins with ``.`` or ``_``.

    Hadoop passes over the same names. Jupyter, Spark, macOS and the Hugging Face hub keep copies under such names.
    """
    return any(part.startswith((".", "_")) for part in name.split("/"))


def reason_to_pass_over(name: str, pattern: str | None) -> str | None:
    """Return why a source does not read a file of its folder, or None if the source reads the file.

    Args:
        name: name of the file, relative to the folder.
        pattern: shell pattern of the names to read. None: all names.
    """
    if is_hidden(name):
        return HIDDEN
    if pattern is not None and not fnmatch(name, pattern):
        return f"the name does not match {pattern}"
    last = name.rpartition("/")[2]
    if kind_of(name) is not None:
        if fnmatchcase(last, "cache-*.arrow"):
            return CACHES
        return DATASETS if last in _DATASETS else None
    if name.lower().endswith((*TOKEN_SUFFIXES, ".ds.index")):
        return TOKENS
    suffix = last.rpartition(".")[2].lower() if "." in last else ""
    return f"not a readable kind: .{suffix}" if suffix else "not a readable kind: no suffix"


class PassedOver:
    """Counts the files that a source does not read, by reason.

    A folder with a hidden name counts once. The rare suffixes of a folder with many kinds are one reason.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count a file."""
        self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """Return the number of files of each reason."""
        kinds = sorted((reason for reason in self._counts if reason.startswith("not a")), key=self._order)
        rare = kinds[_MOST_SUFFIXES:]
        counts = {reason: self._counts[reason] for reason in sorted(self._counts) if reason not in rare}
        if rare:
            counts["not a readable kind: other suffixes"] = sum(self._counts[reason] for reason in rare)
        return counts

    def _order(self, reason: str) -> tuple[int, str]:
        return -self._counts[reason], reason
