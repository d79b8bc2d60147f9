"""Which distributed checkpoints are complete: a list of their files and sizes, written last.

A checkpoint without the list, or with a file that is missing or of another size, was cut off while it was written or
while it was copied or removed. Only names and sizes are looked at, so it costs nothing at any size.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from exact_titan.errors import InputError

MANIFEST = "files.json"
"""In a checkpoint's folder: ``{"files": {name: bytes}}``."""

DCP_METADATA = ".metadata"
"""What PyTorch's distributed checkpoints have in their folder: which tensor lies where."""


def write_manifest(checkpoint: Path) -> None:
    """List the files of a checkpoint that is written, atomically: it is complete from then on.

    Raises:
        RuntimeError: if a file is missing or shorter than the checkpoint's own metadata say.
    """
    if (checkpoint / DCP_METADATA).is_file():
        # By name, because other nodes have written them: a listing may come out of this node's cache.
        least = _stored_bytes(checkpoint) | {DCP_METADATA: 1}
    else:
        least = {path.relative_to(checkpoint).as_posix(): 1 for path in checkpoint.rglob("*") if path.is_file()}
    sizes = {name: _size(checkpoint / name) for name in sorted(least)}
    for name, size in sizes.items():
        if size is None or size < least[name]:
            raise RuntimeError(f"{checkpoint / name} has {size or 0} bytes behind its save, and not {least[name]}")
    partial = checkpoint / f".{MANIFEST}"
    with partial.open("w", encoding="utf-8") as out:
        json.dump({"files": sizes}, out, indent=1)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(checkpoint / MANIFEST)


def why_incomplete(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete, in a few words; None if it is."""
    try:
        files = dict(json.loads((checkpoint / MANIFEST).read_bytes())["files"])
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    if not files or not all(type(size) is int for size in files.values()):
        return f"its {MANIFEST} is damaged"
    for name, size in files.items():
        found = _size(checkpoint / name)
        if found is None:
            return f"its {name} is missing"
        if found != size:
            return f"its {name} has {found:,} bytes and not {size:,}"
    return None


@contextmanager
def reading_checkpoint(checkpoint: Path, remedy: str = "remove it, and the one before it is taken") -> Iterator[None]:
    """Around the reading of a complete checkpoint, whose files may still hold something else than was written.

    Args:
        checkpoint: its folder, for the message.
        remedy: the way out, for the message.

    Raises:
        InputError: naming the checkpoint, in the place of PyTorch's errors.
    """
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        why = " ".join(str(cause).split())
        raise InputError(f"{checkpoint} is damaged ({why:.150}): {remedy}") from error


def find_checkpoints(folder: Path) -> tuple[dict[int, Path], dict[Path, str]]:
    """The checkpoints in a run's checkpoint folder.

    Returns:
        The complete ones by step, and the :func:`why_incomplete` of each that is not complete; both ascending.
    """
    complete, incomplete = {}, {}
    for step, checkpoint in sorted(_step_folders(folder)):
        why = why_incomplete(checkpoint)
        if why is None:
            complete[step] = checkpoint
        else:
            incomplete[checkpoint] = why
    return complete, incomplete


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return [(int(match[1]), one) for one in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)", one.name))]


def _stored_bytes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file that the metadata know, by name."""
    stored: dict[str, int] = {}
    for info in FileSystemReader(checkpoint).read_metadata().storage_data.values():
        stored[info.relative_path] = max(stored.get(info.relative_path, 0), info.offset + info.length)
    return stored


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
