"""The parts of a manifest: the records of sources, shards, splits and instructions."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceRecord:
    """A packed file or folder.

    Attributes:
        name: name of the source.
        files: number of files that were read.
        bytes: bytes of these files.
        sha256: digest of the content (:func:`~exact_titan.documents.digests.digest_in_order`). In formats 1 to 3, the
            digest of a folder and of the two files of a token file also covers the relative names of the files
            (:func:`~exact_titan.documents.digests.digest_of_all`).
        documents: number of packed documents.
        tokens: tokens of the packed documents, with the end-of-text tokens.
        dropped: number of documents that were not packed, by reason.
        remarks: number of packed documents or of files with a remark, by remark.
        contents: size of every file that was read, by the sha256 (hex) of its content.
        passed_over: number of the other files of the folder, by reason.

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
