"""The manifest of a distributed checkpoint: a list of its files and their sizes, written after all other files.

A checkpoint is incomplete if the manifest is missing, if a file is missing, or if a file has another size. Incomplete
checkpoints come from an interrupted save, copy or removal. The check reads only names and sizes, so its cost does not
depend on the size of the checkpoint.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_reader import DCP_METADATA, stored_bytes
from exact_titan.runs.run_record import FILE_NAME as RUN_RECORD
from exact_titan.runs.safe_pickle import MetadataError, parse_metadata

MANIFEST = "files.json"
"""The manifest's file name in the folder of a checkpoint. Content: ``{"files": {name: bytes}}``."""

OTHER_CHECKPOINT = "copy it again, or resume from an earlier checkpoint with --checkpoint.load_step"
"""The way out, in messages about a checkpoint that cannot be read."""


def write_manifest(checkpoint: Path) -> None:
    """Write the manifest of a saved checkpoint atomically. The checkpoint is complete from then on.

    Raises:
        RuntimeError: if a file is missing, or is shorter than the metadata of the checkpoint require.
    """
    if (checkpoint / DCP_METADATA).is_file():
        # Other nodes have written some of the files. This node may cache the folder's listing, so the files are
        # looked up by name.
        least = stored_bytes(parse_metadata(checkpoint / DCP_METADATA)) | {DCP_METADATA: 1}
        if (checkpoint / RUN_RECORD).is_file():
            least[RUN_RECORD] = 1
    else:
        least = {path.relative_to(checkpoint).as_posix(): 1 for path in checkpoint.rglob("*") if path.is_file()}
    sizes = {name: _size(checkpoint / name) for name in sorted(least)}
    for name, size in sizes.items():
        if size is None or size < least[name]:
            raise RuntimeError(
                f"{checkpoint / name} has {size or 0} bytes after the save, but needs {least[name]}: check the disk"
            )
    partial = checkpoint / f".{MANIFEST}"
    with partial.open("w", encoding="utf-8") as out:
        json.dump({"files": sizes}, out, indent=1)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(checkpoint / MANIFEST)


def why_incomplete(checkpoint: Path) -> str | None:
    """Return in a few words why a checkpoint is incomplete, or ``None`` if the checkpoint is complete."""
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
            return f"its {name} has {found:,} bytes, not {size:,}"
    return None


@contextmanager
def reading_checkpoint(checkpoint: Path, remedy: str = OTHER_CHECKPOINT) -> Iterator[None]:
    """Turn PyTorch's errors about damaged checkpoint files into one :class:`InputError`.

    A file of a complete checkpoint may still contain damaged bytes, because the manifest lists only sizes.

    Args:
        checkpoint: the folder of the checkpoint, for the message.
        remedy: the way out, for the message.

    Raises:
        InputError: if PyTorch cannot read the checkpoint. The message names the checkpoint.
    """
    try:
        yield
    except (CheckpointException, MetadataError) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        why = " ".join(str(cause).split())
        raise InputError(f"{checkpoint} cannot be read ({why:.150}): {remedy}") from error


def find_checkpoints(folder: Path) -> tuple[dict[int, Path], dict[Path, str]]:
    """Find the checkpoints in the checkpoint folder of a run.

    Returns:
        The complete checkpoints by step, and the reason of :func:`why_incomplete` by incomplete checkpoint. Both are in
        ascending order of the step.
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


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
