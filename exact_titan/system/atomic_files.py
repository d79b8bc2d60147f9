"""Files and folders that appear whole, or not at all, also after a kill or a power cut.

1. :func:`partial_of` gives the name of the unfinished file or folder: ``.NAME.HOST.PID`` next to the target.
2. The caller writes the unfinished file or folder.
3. :func:`publish` writes it through to the disk and renames it to the target.

A kill may leave an unfinished file. The next :func:`partial_of` of the same target removes it.
"""

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from exact_titan.system.file_errors import naming

_DAY = 24 * 3600


def partial_of(target: Path) -> Path:
    """Return the path of this process for the unfinished ``target``. The path does not exist.

    The function removes unfinished files and folders of the target from ended processes. A process of another machine
    counts as ended if its file or folder has not changed for a day.
    """
    # A long name leaves room for the host and the process: a file name has at most 255 bytes.
    name = os.fsencode(target.name)[:150].decode(errors="ignore")
    host = re.sub(r"[^\w-]", "-", socket.gethostname())[:64]
    own = target.with_name(f".{name}.{host}.{os.getpid()}")
    with contextlib.suppress(OSError):
        for found in target.parent.iterdir():
            if (match := re.fullmatch(rf"\.{re.escape(name)}\.([\w-]+)\.(\d+)", found.name)) is None:
                continue
            if found == own or _has_ended(found, is_local=match[1] == host, process=int(match[2])):
                _remove(found)
    return own


def publish(partial: Path, target: Path) -> None:
    """Write a finished file or folder through to the disk, and rename it to ``target``.

    An existing file is replaced. An existing folder must be empty.

    Raises:
        OSError: if the disk is full or fails, or if the target cannot be replaced. The partial stays.
    """
    if partial.is_dir():
        for folder, _, files in os.walk(partial, topdown=False):
            for file in files:
                _sync(Path(folder, file))
            _sync(Path(folder))
    else:
        _sync(partial)
    partial.replace(target)
    _sync(target.parent)


@contextlib.contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """Make the unfinished folder of ``target``, and publish the folder at the end of the context.

    After an exception, Ctrl-C or an exit nothing is left: no unfinished folder, and no new folder above the target.

    Raises:
        OSError: if the folder cannot be made or published. The target is then as before.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    partial = partial_of(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        publish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_atomically(file: Path, data: str | bytes) -> None:
    """Write ``data`` (text as UTF-8) to ``file``. The file has the old or the new content at any moment.

    Raises:
        OSError: if the file cannot be written. The old file stays, and nothing else is left.
    """
    partial = partial_of(file)
    try:
        with naming(file):
            partial.write_bytes(data.encode() if isinstance(data, str) else data)
            publish(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot write a folder through.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _has_ended(found: Path, *, is_local: bool, process: int) -> bool:
    try:
        if is_local:
            os.kill(process, 0)
            return False
        return time.time() - found.lstat().st_mtime > _DAY
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
