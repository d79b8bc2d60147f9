"""The contents of a packed dataset: ``manifest.json`` and its fingerprint.

The manifest is written last. A folder without a manifest is therefore not a dataset. The same content in the same
order, the same tokenizer and the same options give the same fingerprint, on any machine and at any time.

The fingerprint of format 4 covers no name of a file or folder. The manifest keeps the names of the sources and of the
tokenizer's folder for the reader. A renamed copy of a corpus or of a tokenizer gives the same fingerprint.

Four formats exist. This version reads all four, and writes format 4:

1. A dataset from before datasets had parts. Its splits have no key ``parts``: all documents are one part.
2. A dataset of documents. All labels have a loss. The fingerprint covers the names.
3. A dataset of instructions. The key ``sft`` says how the instructions were packed. The shards and a file for each
   split say which labels have no loss (:mod:`shards`, :mod:`lengths`). The fingerprint covers the names.
4. A dataset of documents (``sft`` is null) or of instructions. The fingerprint covers no names.

A dataset keeps its format when documents are appended. Only format 1 becomes format 2, because the appended documents
are parts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.dataset.manifest_checks import check_dataset, check_split
from exact_titan.dataset.parsed_records import AGAIN, parse_record
from exact_titan.dataset.records import SftRecord, ShardRecord, SourceRecord, SplitRecord
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.json_files import parse_json

__all__ = ["Manifest", "SftRecord", "ShardRecord", "SourceRecord", "SplitRecord"]

FORMAT_VERSIONS = (1, 2, 3, 4)
FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
MOST_BYTES = 2**30
"""Bytes of the largest manifest. A source file takes about 85 bytes, a shard about 200."""
OPTIONAL_KEYS = ("remarks", "contents", "passed_over")
"""Keys of a source that older datasets do not have."""
NOT_COVERED = {
    "sources": ("name", "dropped", "remarks", "passed_over"),
    "tokenizer": ("name",),
    "sft": ("too_long",),
}
"""Keys that the fingerprint of format 4 does not cover: names, and notes about documents for the reader."""
NOT_COVERED_BEFORE_4 = {"sources": ("passed_over",)}


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``. The fingerprint is added when the file is written.

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
    format_version: int = FORMAT_VERSIONS[-1]

    @property
    def covers_names(self) -> bool:
        """Whether the fingerprint covers the names of the sources and of the tokenizer's folder."""
        return _covers_names(self.format_version)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the canonical JSON of all keys of the file, except the keys of :data:`NOT_COVERED`."""
        return _fingerprint(self._content())

    def with_more(
        self, sources: Sequence[SourceRecord], splits: dict[str, SplitRecord], sft: SftRecord | None
    ) -> "Manifest":
        """Return the manifest of the dataset with appended documents, in the format of the dataset.

        Args:
            sources: the records of the new sources.
            splits: the records of all splits of the larger dataset.
            sft: the record of all instructions of the larger dataset.
        """
        # The appended documents are parts, and format 1 has no parts.
        version = max(self.format_version, 2)
        return dataclasses.replace(
            self, sources=[*self.sources, *sources], splits=splits, sft=sft, format_version=version
        )

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json`` in one step. At any moment the file is complete: the old file or the new.

        Raises:
            OSError: if the file cannot be written.
        """
        content = self._content() | {"fingerprint": self.fingerprint}
        write_atomically(folder / FILE_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check ``folder/manifest.json``.

        Raises:
            InputError: if the folder or the manifest is missing or cannot be read, the manifest is not JSON or has
                another format version, a key is missing or has the wrong type, the fingerprint does not match, or a
                number or a name is impossible (:mod:`manifest_checks`).
        """
        file = folder / FILE_NAME
        try:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder: `exact-titan pack … --out {folder}` makes the folder")
            if not file.is_file():
                raise InputError(
                    f"{folder} is not a packed dataset: it has no {FILE_NAME}, `exact-titan pack` writes one"
                )
            if (size := file.stat().st_size) > MOST_BYTES:
                raise InputError(f"{file} has {size} bytes: a manifest has at most {MOST_BYTES}: {AGAIN}")
            content = parse_json(read_bounded(file, MOST_BYTES))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}): {AGAIN}") from error
        if not isinstance(content, dict):
            raise InputError(f"{file} is not a JSON object: {AGAIN}")
        version = content.get("format_version")
        if type(version) is not int or version not in FORMAT_VERSIONS:
            raise InputError(
                f"{file}: format_version is {version!r:.60}, this version of exact_titan reads "
                f"{', '.join(map(str, FORMAT_VERSIONS))}: use the version of exact_titan that packed the dataset, or "
                "pack the dataset again"
            )
        fingerprint = content.pop("fingerprint", None)
        manifest = parse_record(cls, _with_all_keys(content, version), file)
        if fingerprint != _fingerprint(content):
            raise InputError(f"{file}: the fingerprint does not match, so the file was changed: {AGAIN}")
        if not manifest.splits:
            raise InputError(f"{file}: splits is empty, a dataset has a split: {AGAIN}")
        check_dataset(
            file,
            window=manifest.window,
            policy=manifest.policy,
            val_fraction=manifest.val_fraction,
            token_dtype=manifest.token_dtype,
            tokenizer=manifest.tokenizer,
        )
        for split, record in manifest.splits.items():
            check_split(file, split, record, manifest.window, masked=manifest.sft is not None, has_parts=version > 1)
        return manifest

    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
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


def _covers_names(version: Any) -> bool:
    return version in (1, 2, 3)


def _fingerprint(content: dict[str, Any]) -> str:
    """Return the fingerprint of the content of a manifest without its key ``fingerprint``."""
    left_out = NOT_COVERED_BEFORE_4 if _covers_names(content.get("format_version")) else NOT_COVERED
    covered = {key: _without(value, left_out.get(key, ())) for key, value in content.items()}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without(value: Any, names: Sequence[str]) -> Any:
    """Return an object, or every object of a list, without some keys. Any other value stays."""
    if isinstance(value, list):
        return [_without(one, names) if isinstance(one, dict) else one for one in value]
    if isinstance(value, dict):
        return {key: one for key, one in value.items() if key not in names}
    return value
