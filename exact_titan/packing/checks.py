"""The checks of ``pack`` and ``append`` before a document is read."""

import os
from collections.abc import Sequence
from pathlib import Path

from exact_titan.dataset.manifest import Manifest, SourceRecord
from exact_titan.dataset.manifest_checks import MOST_WINDOW
from exact_titan.dataset.policies import POLICIES
from exact_titan.documents.sources import Source
from exact_titan.documents.special_tokens import SpecialTokens
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.errors import InputError
from exact_titan.packing.corpus import Corpus
from exact_titan.packing.work_folder import remove_left_over

SFT_POLICY = "best_fit"
"""The policy for instructions. Every sample fits a window, and ``best_fit`` does not cut such a document."""


def open_sources(
    corpus: Corpus, text_key: str, template: str | None, special_tokens: SpecialTokens
) -> list[Source | TokenFile]:
    """List the files of the sources.

    Raises:
        InputError: if a source cannot be listed, or if an option or a source does not fit instructions.
    """
    if template and special_tokens == "ids":
        raise InputError(
            "--special-tokens is 'ids', but special tokens that a row of instructions spells always stay text: leave "
            "the option out"
        )
    opened = [source.open(text_key) for source in corpus.sources]
    for entry, source in zip(corpus.sources, opened, strict=True):
        if template and entry.text_key is not None:
            raise InputError(
                f"source {entry.path} has a text_key, but the fields of instructions have fixed names: leave it out"
            )
        if template and isinstance(source, TokenFile):
            raise InputError(f"source {source.path} is a token file, and has no instructions: give .jsonl or .parquet")
    return opened


def check_widths(opened: Sequence[Source | TokenFile], eos_id: int) -> None:
    """Refuse token files whose ids are too narrow for the end-of-text id."""
    for source in opened:
        if isinstance(source, TokenFile):
            source.check_width(eos_id)


def check_options(
    tokenizer: Path,
    seq_len: int,
    out: Path,
    val_fraction: float,
    policy: str,
    template: str | None,
) -> None:
    """Refuse values of options before any file of a source is read.

    Raises:
        InputError: naming the option.
    """
    for name, path in (("--tokenizer", tokenizer), ("--out", out)):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise InputError(f"{name} {shown}: the name is not UTF-8: give another name") from None
    if out.parts and out.parts[0].endswith(":"):  # pathlib shortens s3://bucket to s3:/bucket
        raise InputError(
            f"--out {out} is a URL, and a dataset is a folder: give a folder, and copy the folder afterwards"
        )
    if not 2 <= seq_len <= MOST_WINDOW:
        raise InputError(f"--seq-len is {seq_len}: a window has at least 2 tokens and at most {MOST_WINDOW}")
    if not 0 <= val_fraction < 1:
        raise InputError(f"--val-fraction is {val_fraction}: it is a share of the documents, from 0 to below 1")
    if policy not in POLICIES:
        raise InputError(f"--policy is {policy!r}: choose one of {', '.join(POLICIES)}")
    if template and policy != SFT_POLICY:
        raise InputError(
            f"--policy is {policy!r}, and --sft packs with {SFT_POLICY} only: a sample of instructions is never cut"
        )
    if os.path.lexists(out):
        remove_left_over(out)
        raise InputError(f"--out {out} exists: give a new folder")


def check_new(folder: Path, manifest: Manifest, sources: Sequence[SourceRecord]) -> None:
    """Refuse a source that a dataset already has."""
    known = {source.sha256: source.name for source in manifest.sources}
    for source in sources:
        if source.sha256 in known:
            raise InputError(f"{folder} holds source {source.name} already (as {known[source.sha256]}): leave it out")
