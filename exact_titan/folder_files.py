"""The files of a folder that may come from somebody else: names that stay inside, and links that stay inside.

A folder may be a snapshot in the cache of the Hugging Face hub: ``…/snapshots/REVISION``. Its files are links to
``…/blobs``. These links are part of the folder. Every other link to a file outside of the folder may lead to a private
file of the user, so such a link is not followed.
"""

import os
from pathlib import Path

from exact_titan.errors import InputError


def is_plain_name(name: object) -> bool:
    """Return whether a value is a text that names a file directly in a folder, without a path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


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
