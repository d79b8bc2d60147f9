"""List the files of a folder, on the local disk or at a URL of fsspec.

Every file of a folder is read, or is counted with the reason, or is an error that names the file.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.documents.file_kinds import (
    EMPTY,
    HIDDEN,
    LOOP,
    PACKED,
    SPECIAL,
    PassedOver,
    is_hidden,
    kind_of,
    reason_to_pass_over,
)
from exact_titan.documents.git_lfs import refuse_pointer
from exact_titan.documents.hub import hub_hint
from exact_titan.documents.remote import access, file_system, remove_abandoned_copies
from exact_titan.documents.streams import why_not_readable
from exact_titan.errors import InputError

HUB_PAGE = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        name: name relative to the source's folder.
        bytes: size.
        version: a text that changes when the file changes.
    """

    name: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        root: the absolute path of the file or folder. At a URL, the path in the file system.
        files: the files to read, sorted by name. A source that is one file has one file with an empty name.
        passed_over: number of the other files, by reason.
    """

    root: str
    files: list[SourceFile]
    passed_over: dict[str, int]


def is_url(path: str) -> bool:
    """Return whether a path is a URL: a path with a scheme and ``://``."""
    return "://" in path


def list_local(path: Path, pattern: str | None) -> Listing:
    """List a local file, or a folder with all its subfolders and the folders that links lead to.

    Raises:
        InputError: if the path does not exist, a file or folder cannot be read, a link leads to nothing, or the name of
            a file is not UTF-8. The error names the file.
    """
    # The working directory may change during the life of a pool of workers: keep the absolute path.
    root = str(path.absolute())
    _check_utf8(str(path), "source")
    try:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            if (why := why_not_readable(found)) is not None:
                raise InputError(f"source {path} cannot be read: {why}")
            return Listing(root, [_local_file(path, "", found)], {})
    except FileNotFoundError as error:
        if path.is_symlink():
            raise _leads_to_nothing(path) from error
        raise InputError(f"source {path}: no such file or folder{_hint(path)}") from error
    except OSError as error:
        raise InputError(f"source {path} cannot be read: {error.strerror}") from error
    passed_over = PassedOver()
    files = list(_walk(path, "", pattern, passed_over, [found]))
    return Listing(root, sorted(files, key=lambda file: file.name), passed_over.counts())


def _hint(path: Path) -> str:
    """Return the likely mistake in a path that does not exist."""
    # Programs of Megatron-LM and datatrove take token files without the suffix.
    token_files = [name for suffix in (".bin", ".ds") if os.path.isfile(name := f"{path}{suffix}")]
    if token_files:
        return f": give {token_files[0]}"
    if any(letter in str(path) for letter in "*?["):
        return ": a source is not a pattern: give the folder, and the pattern with the key files of a corpus TOML"
    if kind_of(path.name) is not None:
        return ""
    hint = "for a dataset of the Hugging Face hub, give hf://datasets/{}, or copy it with `hf download`"
    return hub_hint(str(path), hint)


def _walk(
    folder: Path, prefix: str, pattern: str | None, passed_over: PassedOver, above: list[os.stat_result]
) -> Iterator[SourceFile]:
    """Yield the files to read. ``prefix`` begins their names. ``above`` are the folders from the source to here."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"source folder {_printable(str(folder))} cannot be listed: {error.strerror}: give the right to read it"
        ) from error
    if _is_packed({entry.name for entry in entries}):
        if not prefix:
            raise InputError(
                f"source {_printable(str(folder))} is a packed dataset, and has no documents: give the documents, or "
                "train on several datasets with dataloader.dataset_path"
            )
        passed_over.add(PACKED)
        return
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            passed_over.add(HIDDEN)
            continue
        try:
            found = entry.stat()
        except OSError as error:
            reason = reason_to_pass_over(name, pattern)
            if "." in entry.name and reason is not None:
                passed_over.add(reason)  # the file would not be read anyway
                continue
            if entry.is_symlink():
                raise _leads_to_nothing(Path(entry.path)) from error
            raise InputError(f"source file {_printable(entry.path)} cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(found.st_mode):
            if any(os.path.samestat(found, one) for one in above):
                passed_over.add(LOOP)
            else:
                yield from _walk(Path(entry.path), f"{name}/", pattern, passed_over, [*above, found])
        elif (reason := reason_to_pass_over(name, pattern)) is not None:
            passed_over.add(reason)
        elif not stat.S_ISREG(found.st_mode):
            passed_over.add(SPECIAL)
        elif not found.st_size:
            passed_over.add(EMPTY)
        else:
            yield _local_file(Path(entry.path), name, found)


def _is_packed(names: set[str]) -> bool:
    """Return whether a folder with files of these names is a packed dataset of exact_titan."""
    return "manifest.json" in names and any(f"{split}-lengths.npy" in names for split in ("train", "val"))


def _local_file(file: Path, name: str, found: os.stat_result) -> SourceFile:
    _check_utf8(str(file), "source file")
    if not os.access(file, os.R_OK):
        raise InputError(f"source file {file} cannot be read: Permission denied: give the right to read it")
    if stat.S_ISREG(found.st_mode):
        refuse_pointer(file, f"source file {file}")
    return SourceFile(name, found.st_size, str(found.st_mtime_ns))


def _leads_to_nothing(link: Path) -> InputError:
    return InputError(
        f"source file {_printable(str(link))} is a link that leads to nothing ({_printable(os.readlink(link))}): "
        "download or mount its target, or remove the link"
    )


def _check_utf8(path: str, what: str) -> None:
    if "\0" in path:
        raise InputError(f"{what} {path!r}: no file has a zero character in its name: correct the path")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} {_printable(path)}: the name is not UTF-8: rename the file") from None


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_url(url: str, pattern: str | None) -> Listing:
    """List a file or folder at a URL.

    Raises:
        InputError: if the URL does not exist or cannot be listed.
    """
    if url.startswith(HUB_PAGE) and "/resolve/" not in url:
        dataset = "/".join(url.removeprefix(HUB_PAGE).split("/")[:2])
        raise InputError(f"source {url}: a page of the Hugging Face hub is not a file: give hf://datasets/{dataset}")
    remove_abandoned_copies()
    with access(f"source {url}"):
        fs, root = file_system(url)
        if url.startswith("http"):
            fs.info(root)  # one question to a server that does not answer, find asks several
        found = fs.find(root, detail=True)
        if not found:
            fs.info(root)  # raises the error that find hides, such as a refused connection
        # The list of a web page has no sizes.
        found = {path: fs.info(path) if info.get("size") is None else info for path, info in found.items()}
    if not found:
        hint = "" if not url.startswith("hf://") or url.startswith("hf://datasets/") else ": give hf://datasets/…"
        raise InputError(f"source {url}: no such file or folder{hint}")
    root = root.rstrip("/")
    if list(found) == [root]:
        return Listing(root, [_remote_file("", found[root])], {})
    passed_over = PassedOver()
    files = []
    for path in sorted(found):
        name = path.removeprefix(root).lstrip("/")
        reason = reason_to_pass_over(name.partition("?")[0], pattern)
        if reason is None and found[path]["size"] == 0:
            reason = EMPTY
        if reason is not None:
            passed_over.add(reason)
        else:
            files.append(_remote_file(name, found[path]))
    return Listing(root, files, passed_over.counts())


def _remote_file(name: str, info: dict[str, Any]) -> SourceFile:
    version = hashlib.sha256(str(sorted((key, str(value)) for key, value in info.items())).encode()).hexdigest()
    return SourceFile(name, int(info.get("size") or 0), version)
