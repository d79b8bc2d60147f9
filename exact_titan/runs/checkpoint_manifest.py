"""The manifest of a distributed checkpoint: the size and the SHA-256 of every file, written after all other files.

A checkpoint is incomplete if the manifest is missing, if a file is missing, or if a file has another size. Incomplete
checkpoints come from an interrupted save, copy or removal. The check reads only names and sizes, so its cost does not
depend on the size of the checkpoint. :mod:`exact_titan.runs.checkpoint_verification` compares the contents.

A file that the system does not let this process read says nothing about the checkpoint: the disk may be away for a
moment, or the file may belong to another user. Such a checkpoint is neither complete nor incomplete.
"""

import errno
import json
import stat
from collections.abc import Mapping
from pathlib import Path

from exact_titan.runs.checkpoint_reader import DCP_METADATA, stored_bytes
from exact_titan.runs.file_digests import sha256_of
from exact_titan.runs.run_record import FILE_NAME as RUN_RECORD
from exact_titan.runs.safe_pickle import parse_metadata
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.file_errors import why
from exact_titan.system.folder_files import is_inner_path
from exact_titan.system.json_files import read_json

MANIFEST = "files.json"
"""The manifest's file name in the folder of a checkpoint.

Content: ``{"files": {name: bytes}, "sha256": {name: hexadecimal digits}}``. Manifests of earlier versions have no
``sha256``."""

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""Errors that say: there is no such file. All other errors of the system say nothing about the file."""


class CannotRead(Exception):
    """The system does not let this process read a file of a checkpoint. The message has the file and the cause."""


def write_manifest(checkpoint: Path, sha256: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a saved checkpoint atomically. The checkpoint is complete from then on.

    Args:
        checkpoint: the folder of the checkpoint.
        sha256: known SHA-256 by file name. The function reads the other files and computes their SHA-256.

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
    known = dict(sha256 or {})
    for name, digest in sha256_of(checkpoint, [name for name in sizes if name not in known]):
        if isinstance(digest, OSError):
            raise digest
        known[name] = digest
    content = {"files": sizes, "sha256": {name: known[name] for name in sizes}}
    write_atomically(checkpoint / MANIFEST, json.dumps(content, indent=1) + "\n")


def why_incomplete(checkpoint: Path) -> str | None:
    """Return in a few words why a checkpoint is incomplete, or ``None`` if the checkpoint is complete.

    Raises:
        CannotRead: if the system does not let this process read a file of the checkpoint.
    """
    try:
        files = read_manifest(checkpoint)[0]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except ValueError:
        return f"its {MANIFEST} is damaged"
    for name, size in files.items():
        found = _size(checkpoint / name)
        if found is None:
            return f"its {name} is missing"
        if found != size:
            return f"its {name} has {found:,} bytes, not {size:,}"
    return None


def read_manifest(checkpoint: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Return the size in bytes of every file of a checkpoint, and the SHA-256 of the files whose SHA-256 is known.

    Raises:
        FileNotFoundError: if the checkpoint has no manifest.
        ValueError: if the file is not a manifest.
        CannotRead: if the system does not let this process read the manifest.
    """
    file = checkpoint / MANIFEST
    try:
        content = read_json(file)
        files, digests = content["files"], content.get("sha256", {})
    except OSError as error:
        if error.errno in NOT_THERE:
            raise FileNotFoundError(file) from None
        raise CannotRead(f"{file}: {why(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(files, dict) or not files or not all(type(size) is int for size in files.values()):
        raise ValueError("no sizes")
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError("no digests")
    if not all(map(is_inner_path, files)) or not digests.keys() <= files.keys():
        raise ValueError("a name that is not the name of a file of the checkpoint")
    return files, digests


def _size(file: Path) -> int | None:
    """Return the size of a file in bytes, or None if there is no such file.

    Raises:
        CannotRead: if the system does not let this process look at the file.
    """
    try:
        found = file.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise CannotRead(f"{file}: {why(error)}") from None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
