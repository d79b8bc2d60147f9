"""The contents of a packed dataset: ``manifest.json``, its fingerprint and its checks.

The manifest is written last. A folder without a manifest is therefore not a dataset. The manifest depends neither on
the time nor on paths. The same sources, tokenizer and options give the same fingerprint on any machine.

Three formats exist, and this version reads all three:

1. A dataset from before datasets had parts. Its splits have no key ``parts``: all documents are one part.
2. A dataset of documents. All labels have a loss.
3. A dataset of instructions. The key ``sft`` says how the instructions were packed. The shards and a file for each
   split say which labels have no loss (:mod:`shards`, :mod:`lengths`).
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from exact_titan.atomic_files import write_atomically
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError

FORMAT_VERSIONS = (1, 2, 3)
FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
OPTIONAL_KEYS = ("remarks", "contents", "passed_over")
"""Keys of a source that older datasets do not have."""


@dataclass(frozen=True)
class SourceRecord:
    """A packed file or folder.

    Attributes:
        name: name of the source.
        files: number of files that were read.
        bytes: bytes of these files.
        sha256: digest of the file. For a folder, and for the two files of a token file, the digest over the sorted
            relative names and the digests of the files.
        documents: number of packed documents.
        tokens: tokens of the packed documents, with the end-of-text tokens.
        dropped: number of documents that were not packed, by reason.
        remarks: number of packed documents or of files with a remark, by remark.
        contents: size of every file that was read, by the sha256 (hex) of its content.
        passed_over: number of the other files of the folder, by reason. The fingerprint does not cover this key: the
            key does not change the content of the dataset.

    Datasets of older versions have no remarks, contents and passed_over.
    """

    name: str
    files: int
    bytes: int
    sha256: str
    documents: int
    tokens: int
    dropped: dict[str, int]
    remarks: dict[str, int] = field(default_factory=dict)
    contents: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRecord:
    """One safetensors file.

    ``bytes`` and ``sha256`` are its size and digest. ``windows`` is the number of windows. ``tokens`` and ``segments``
    are the lengths of its ``tokens`` tensor and of its two segment tensors.
    """

    file: str
    bytes: int
    sha256: str
    windows: int
    tokens: int
    segments: int


@dataclass(frozen=True)
class SplitRecord:
    """The windows of one split.

    Attributes:
        windows: number of windows.
        tokens: number of inputs of all windows, without padding.
        targets: number of inputs with a supervised label.
        padding: number of padding inputs of all windows.
        documents: number of documents.
        bucket_counts: number of targets per bucket of ``Buckets(window)``.
        shards: the shards, in the order of their windows.
        parts: number of documents of each part. The policy lays out every part separately, one after another. No window
            and no shard has documents of two parts. Empty in format 1: all documents are one part.
    """

    windows: int
    tokens: int
    targets: int
    padding: int
    documents: int
    bucket_counts: list[int]
    shards: list[ShardRecord]
    parts: list[int]


@dataclass(frozen=True)
class SftRecord:
    """How instructions were packed.

    Attributes:
        template: name of the template, ``dolly`` or ``chat``.
        template_sha256: digest of the template's text.
        rows: number of rows that were read. A conversation has one document for every assistant message.
        too_long: the first samples that were left out because they are longer than the window, by name. The key
            ``dropped`` of the sources has the number of all these samples.
    """

    template: str
    template_sha256: str
    rows: int
    too_long: list[str]


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``. The format version and the fingerprint are added when the file is written.

    ``sft`` is None for a dataset of documents.
    """

    sources: list[SourceRecord]
    tokenizer: TokenizerRecord
    window: int
    policy: str
    token_dtype: str
    val_fraction: float
    splits: dict[str, SplitRecord]
    sft: SftRecord | None = None

    @property
    def format_version(self) -> int:
        """The lowest format that holds the dataset."""
        if self.sft is not None:
            return 3
        return 2 if any(record.parts for record in self.splits.values()) else 1

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the canonical JSON of all other keys of the file, except ``passed_over``."""
        return _fingerprint(self._content())

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json`` in one step. At any moment the file is complete: the old file or the new."""
        content = self._content() | {"fingerprint": self.fingerprint}
        write_atomically(folder / FILE_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check ``folder/manifest.json``.

        Raises:
            InputError: if the folder or the manifest is missing, the manifest is not JSON or has another format
                version, a key is missing or has the wrong type, or the fingerprint or the numbers do not match.
        """
        file = folder / FILE_NAME
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: `exact-titan pack … --out {folder}` makes the folder")
        if not file.is_file():
            raise InputError(f"{folder} is not a packed dataset: it has no {FILE_NAME}, `exact-titan pack` writes one")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}): pack the dataset again") from error
        if not isinstance(content, dict):
            raise InputError(f"{file} is not a JSON object: pack the dataset again")
        version = content.pop("format_version", None)
        if type(version) is not int or version not in FORMAT_VERSIONS:
            raise InputError(
                f"{file}: format_version is {version!r}, this version of exact_titan reads "
                f"{', '.join(map(str, FORMAT_VERSIONS))}: pack the dataset again"
            )
        fingerprint = content.pop("fingerprint", None)
        manifest = parse_record(cls, _with_all_keys(content, version), file)
        if fingerprint != _fingerprint({"format_version": version} | content):
            raise InputError(f"{file}: the fingerprint does not match, so the file was changed: pack the dataset again")
        for split, record in manifest.splits.items():
            if version > 1 and sum(record.parts) != record.documents:
                raise InputError(
                    f"{file}: the parts of {split} have {sum(record.parts)} documents, and the split "
                    f"has {record.documents}: pack the dataset again"
                )
        return manifest

    def _content(self) -> dict[str, Any]:
        content = {"format_version": self.format_version} | dataclasses.asdict(self)
        content["sources"] = [_without_empty(source) for source in content["sources"]]
        if self.format_version < 3:
            del content["sft"]
        if self.format_version < 2:
            for record in content["splits"].values():
                del record["parts"]
        return content


def _without_empty(source: dict[str, Any]) -> dict[str, Any]:
    """Return a source's record without empty optional keys. The fingerprints of older datasets stay."""
    return {key: value for key, value in source.items() if value or key not in OPTIONAL_KEYS}


def _with_all_keys(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the content of a manifest with the keys that its format does not have."""
    if version < 3:
        content = {**content, "sft": None}
    if version < 2 and isinstance(content.get("splits"), dict):
        content["splits"] = {
            split: {**record, "parts": []} if isinstance(record, dict) else record
            for split, record in content["splits"].items()
        }
    return content


def _covered(source: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != "passed_over"}


def _fingerprint(content: dict[str, Any]) -> str:
    if isinstance(sources := content.get("sources"), list):
        covered = [_covered(source) if isinstance(source, dict) else source for source in sources]
        content = content | {"sources": covered}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_record(kind: Any, value: Any, file: Path, key: str = "") -> Any:
    """Convert ``value`` to ``kind``: a dataclass, ``list[…]``, ``dict[str, …]``, a plain type, or one of them or None.

    Raises:
        InputError: if the value does not fit. The error names ``file`` and ``key``.
    """
    if NoneType in get_args(kind):
        return None if value is None else parse_record(get_args(kind)[0], value, file, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        optional = {one.name for one in dataclasses.fields(kind) if one.default_factory is not dataclasses.MISSING}
        parts = {}
        for name, hint in hints.items():
            where = f"{key}.{name}" if key else name
            if name not in value and name in optional:
                continue
            if name not in value:
                raise InputError(f"{file}: key {where!r} is missing: pack the dataset again")
            parts[name] = parse_record(hint, value[name], file, where)
        return kind(**parts)  # type: ignore[operator]
    if get_origin(kind) is list and isinstance(value, list):
        return [parse_record(get_args(kind)[0], item, file, f"{key}[{index}]") for index, item in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: parse_record(get_args(kind)[1], item, file, f"{key}.{name}") for name, item in value.items()}
    # type() and not isinstance(), because True is not accepted as an integer.
    if type(value) is kind or (kind is float and type(value) is int):
        if kind is int and not 0 <= value < 2**63:
            raise InputError(f"{file}: key {key!r} is {value}: it must be from 0 to 2^63 - 1: pack the dataset again")
        return value
    names = {int: "an integer", float: "a number", str: "a string", list: "a list"}
    wanted = names.get(get_origin(kind) or kind, "an object")
    raise InputError(f"{file}: key {key!r} must be {wanted}, it is {value!r:.60}: pack the dataset again")
