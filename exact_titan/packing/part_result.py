"""The result of a finished part: what every source gave to the part, and the records of the splits."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from exact_titan.dataset.files import check_file, check_size
from exact_titan.dataset.lengths import lengths_file
from exact_titan.dataset.manifest_checks import check_names
from exact_titan.dataset.parsed_records import parse_record
from exact_titan.dataset.records import SplitRecord
from exact_titan.documents.digests import FileDigest
from exact_titan.packing.parts import Part
from exact_titan.system.json_files import parse_json

RESULT = "part.json"


@dataclass
class SourceShare:
    """The contribution of a source to a part.

    ``files`` are the files that were read. ``documents`` and ``tokens`` count the packed documents. ``dropped`` counts
    the dropped documents by reason. ``remarks`` counts packed documents by remark. ``rows`` counts the rows of
    instructions, and ``too_long`` names the first samples that are longer than the window. ``next_tokens`` is the
    number of tokens of the first document beyond the part's limit, or 0.
    """

    files: list[FileDigest] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    too_long: list[str] = field(default_factory=list)
    next_tokens: int = 0


@dataclass
class PartResult:
    """The result of a finished part.

    Attributes:
        sources: contribution of each source, by the source's index.
        splits: record of each split. A split without a window has no record.
    """

    sources: dict[str, SourceShare]
    splits: dict[str, SplitRecord]

    @property
    def documents(self) -> int:
        """Number of packed documents."""
        return sum(share.documents for share in self.sources.values())

    @property
    def tokens(self) -> int:
        """Number of tokens of the packed documents, with the end-of-text tokens."""
        return sum(share.tokens for share in self.sources.values())

    @classmethod
    def read(cls, folder: Path) -> "PartResult | None":
        """Read the result of the part in a folder. Return None if the part is not finished.

        A part with a damaged result, or with a missing shard or a shard of another size, is not finished. The part is
        then packed again.
        """
        file = folder / RESULT
        if not file.is_file():
            return None
        try:
            result: PartResult = parse_record(cls, parse_json(file.read_bytes()), file)
            for split, record in result.splits.items():
                check_names(file, split, record)
                for shard in record.shards:
                    check_size(folder / shard.file, shard.bytes)
                check_file(lengths_file(folder, split))
        except ValueError:
            return None
        return result

    def write(self, folder: Path) -> None:
        """Write the result into the folder. The part is then finished."""
        (folder / RESULT).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def part_folder(parts: Path, part: Part) -> Path:
    """Return the folder of a finished part inside the folder of all parts."""
    return parts / part.key
