"""Compare the contents of a run's checkpoints with their manifests."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_errors import OTHER_CHECKPOINT, read_error
from exact_titan.runs.checkpoint_folders import find_checkpoints
from exact_titan.runs.checkpoint_manifest import MANIFEST, CannotRead, read_manifest
from exact_titan.runs.checkpoint_verdict import Kind, Verdict
from exact_titan.runs.file_digests import sha256_of


def known_digests(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a checkpoint, by name. Empty if the checkpoint has no SHA-256.

    Raises:
        InputError: if the manifest cannot be read.
    """
    try:
        return read_manifest(checkpoint)[1]
    except (FileNotFoundError, ValueError):
        return {}
    except CannotRead as error:
        raise InputError(f"{error}: repeat the command when this user can read the file") from None


def check_contents(checkpoint: Path, sha256: Mapping[str, str] | None = None) -> None:
    """Refuse a checkpoint with a file whose content has changed since the save.

    Args:
        checkpoint: the folder of the checkpoint.
        sha256: the files to read, with their SHA-256. None: all files whose SHA-256 is known.

    Raises:
        InputError: naming the changed files, or a file that cannot be read.
    """
    expected = known_digests(checkpoint) if sha256 is None else sha256
    changed = []
    for name, found in sha256_of(checkpoint, list(expected)):
        if isinstance(found, OSError):
            raise read_error(checkpoint / name, found)
        if found != expected[name]:
            changed.append(name)
    if changed:
        raise InputError(
            f"{checkpoint}: the content of {', '.join(changed)} is not the content of the save, by the SHA-256 in "
            f"{MANIFEST}: {OTHER_CHECKPOINT}"
        )


def verify_checkpoints(folder: Path) -> Iterator[tuple[bool, str]]:
    """Check all checkpoints in the checkpoint folder of a run.

    Yields:
        Whether a file or a checkpoint is as it was saved, and a line about it.

    Raises:
        InputError: if the folder cannot be listed.
    """
    found = find_checkpoints(folder)
    for checkpoint in found.complete.values():
        yield from verify_checkpoint(checkpoint)
    for one in found.refused:
        yield False, one.line(skipped=False)


def verify_checkpoint(checkpoint: Path) -> Iterator[tuple[bool, str]]:
    """Check one checkpoint, as :func:`verify_checkpoints` does."""
    if (verdict := Verdict.of(checkpoint)).kind != Kind.COMPLETE:
        yield False, verdict.line(skipped=False)
        return
    try:
        sizes, expected = read_manifest(checkpoint)
    except CannotRead as error:
        yield False, Verdict(checkpoint, Kind.UNREADABLE, str(error)).line(skipped=False)
        return
    for name, found in sha256_of(checkpoint, list(expected)):
        if isinstance(found, OSError):
            yield False, f"{checkpoint / name} cannot be read: {found.strerror}"
        elif found != expected[name]:
            yield False, f"{checkpoint / name}: its content is not the content of the save"
        else:
            yield True, f"{checkpoint / name}: {sizes[name]:,} bytes"
    if without := [name for name in sizes if name not in expected]:
        yield True, f"{checkpoint}: no SHA-256 of {', '.join(without)}, from an earlier version: only the sizes agree"
