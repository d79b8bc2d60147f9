"""The files of a folder that may come from somebody else: names that stay inside, and links that stay inside.

A folder may be a snapshot in the cache of the Hugging Face hub: ``…/snapshots/REVISION``. Its files are links to
``…/blobs``. These links are part of the folder. Every other link to a file outside of the folder may lead to a private
file of the user, so no file behind such a link is copied into a dataset, a run or an export.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.json_files import LARGEST_BYTES, parse_json


def is_plain_name(name: object) -> bool:
    """Return whether a value is a text that names a file directly in a folder, without a path."""
    return is_inner_path(name) and name not in ("", ".") and not set(str(name)) & {"/", "\\"}


def is_inner_path(path: object) -> bool:
    """Return whether a value is a text that can be the path of a file inside a folder, without ``..``."""
    if not isinstance(path, str) or "\0" in path or os.path.isabs(path) or ".." in path.split("/"):
        return False
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return path != ""


def leads_outside(folder: Path, file: Path) -> bool:
    """Return whether a file of ``folder`` is a link, or in a linked folder, whose target is outside of ``folder``.

    A target in ``blobs`` of the same repository in the cache of the Hugging Face hub is not outside.
    """
    root, target = folder.resolve(), file.resolve()
    if target.is_relative_to(root):
        return False
    snapshot = next((one for one in (root, *root.parents) if one.parent.name == "snapshots"), None)
    return snapshot is None or target.parent != snapshot.parent.parent / "blobs"


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a link to a file outside of the folder.

    Raises:
        InputError: naming the link and its target.
    """
    if leads_outside(folder, file):
        raise InputError(
            f"{file} is a link to {os.path.realpath(file)}, which is outside of {folder}: such links are not followed; "
            f"put a copy of the file in the place of the link"
        )


def without_links(file: str, flags: int) -> int:
    """Open a file that the package writes, but not behind a link. The ``opener`` of :func:`open`.

    Raises:
        OSError: if the file is a link (ELOOP), or cannot be opened.
    """
    return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def checked_content(folder: Path, file: Path) -> bytes:
    """Return the content of a file of a model or tokenizer folder, for a copy of the file.

    A ``.json`` file must hold a JSON object. A ``.jinja`` or ``.txt`` file must be text in UTF-8. No file may be larger
    than 256 MiB (:data:`exact_titan.system.json_files.LARGEST_BYTES`).

    Raises:
        InputError: naming the file, if the file is a link out of the folder, or has another content than its name says.
    """
    check_inside(folder, file)
    try:
        content = read_bounded(file, LARGEST_BYTES)
        if file.suffix == ".json" and not isinstance(value := parse_json(content), dict):
            raise ValueError(f"it is {value!r:.40}")
        if file.suffix in (".jinja", ".txt"):
            content.decode()
    except ValueError as error:
        kind = {".json": "a JSON object", ".model": "a tokenizer"}.get(file.suffix, "text in UTF-8")
        raise InputError(f"{file} is not {kind} ({error}): copy the file again from its source") from None
    return content


def copy_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the files of these names that ``folder`` contains.

    Raises:
        InputError: as :func:`checked_content`.
    """
    for name in names:
        if (folder / name).is_file():
            (target / name).write_bytes(checked_content(folder, folder / name))
