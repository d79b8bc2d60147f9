"""The folder of a study before the training: one study a folder, and one process that trains the study."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.runs.destinations import check_writable
from exact_titan.study.results import FILE_NAME, read_study_file
from exact_titan.study.spec import Study
from exact_titan.system import folder_lock

_LOCK = ".lock"


def check_folder(study: Study, folder: Path) -> None:
    """Refuse a folder that has another study, or files that are not from a study.

    Raises:
        InputError: naming the folder, and the first key of the study that differs.
    """
    check_writable(folder, "--out")
    if (folder / FILE_NAME).exists():
        _check_same(read_study_file(folder), study, folder)
    elif folder.exists() and any(file.name != _LOCK for file in folder.iterdir()):
        raise InputError(f"--out {folder} has other files, and no {FILE_NAME}: choose a new folder")


def locked(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from training the study of this folder. Make the folder.

    A run that outlives this process keeps the lock until the run has saved, because the run inherits the open file.

    Raises:
        InputError: if another process trains the study.
    """
    held, way_out = f"another process trains the study in {folder}", "wait for its end, or stop it"
    return folder_lock.locked(folder / _LOCK, held, way_out, inherited=True)


def _check_same(was: Study, now: Study, folder: Path) -> None:
    if was.digest() == now.digest():
        return
    name, one, other = next(_changed(was.identity(), now.identity()))
    raise InputError(
        f"--out {folder} has another study: {name} is {_shown(one)} there, and {_shown(other)} now: choose a new folder"
    )


def _changed(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of every difference of two JSON values."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *was]):
            yield from _changed(was.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for place, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _changed(one, other, f"{name}[{place}]")
    elif was != now:
        yield name, was, now


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
