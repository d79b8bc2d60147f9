"""Files at URLs: the file systems of fsspec with time-outs, copies on the local disk, and errors of one line."""

import atexit
import contextlib
import errno
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from exact_titan.errors import InputError
from exact_titan.system.atomic_files import partial_of

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of this package that installs fsspec's library for a URL scheme. ``hf://`` needs no extra."""

CONNECT_SECONDS = 15
READ_SECONDS = 30
"""Time-outs of a connection, and of a server that sends nothing. A slow download has no time-out."""

_GCS_READ_SECONDS = 10  # gcsfs tries a request 6 times, with pauses of 31 s in total
_VERSION_KEYS = (
    "size",
    "etag",
    "ETag",
    "Content-MD5",
    "LastModified",
    "last_modified",
    "updated",
    "generation",
    "mtime",
)
"""What a store says of a file that another content changes, in the words of fsspec's libraries."""

_PAGE_BYTES = 2**26
_MOST_LETTERS = 300
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, with time-outs, and the path of the URL in the file system."""
    scheme = url.partition("://")[0]
    if scheme == "hf":
        _set_timeouts_of_hub()
    options = _OPTIONS[scheme]() if scheme in _OPTIONS else {}
    return fsspec.url_to_fs(url, **options)


def _http_options() -> dict[str, Any]:
    return {"client_kwargs": {"timeout": _aiohttp_timeout(READ_SECONDS), "response_class": _bounded_response()}}


@functools.cache
def _bounded_response() -> type:
    import aiohttp

    class Response(aiohttp.ClientResponse):
        """A response whose page is bounded. A download does not call :meth:`read`."""

        async def read(self) -> bytes:
            if self._body is None:
                body = bytearray()
                async for block in self.content.iter_any():
                    body += block
                    if len(body) > _PAGE_BYTES:
                        self.close()
                        raise ValueError(f"a page of more than {_PAGE_BYTES:,} bytes is no list of files")
                self._body = bytes(body)
            return self._body

    return Response


def _gcs_options() -> dict[str, Any]:
    return {"requests_timeout": _aiohttp_timeout(_GCS_READ_SECONDS)}


def _s3_options() -> dict[str, Any]:
    # s3fs has time-outs (5 s and 15 s) and tries a request 5 times. botocore would try each of them 5 times again.
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}}}


def _aiohttp_timeout(read: float) -> Any:
    import aiohttp

    # aiohttp ends every request after 5 minutes by default, also a download that makes progress.
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read)


_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "http": _http_options,
    "https": _http_options,
    "gs": _gcs_options,
    "gcs": _gcs_options,
    "s3": _s3_options,
    "s3a": _s3_options,
}


@functools.cache
def _set_timeouts_of_hub() -> None:
    """Give the requests of huggingface_hub that have no time-out one. Its list of a dataset's files has none."""
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        one = default_client_factory()
        one.timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        return one

    set_client_factory(client)


@contextmanager
def copied(url: str, path: str, name: str, shown: str, size: int) -> Iterator[Path]:
    """Copy a remote file to the local disk until the context ends.

    Args:
        url: the URL of the source.
        path: path of the file in the file system.
        name: name of the file.
        shown: name of the file in messages.
        size: bytes of the file when it was listed. 0: not known.

    Raises:
        InputError: if the file cannot be copied, or changes after it was listed.
    """
    with _copies.folder() as folder:
        local = folder / name
        with access(shown):
            fs = file_system(url)[0]
            before = _version(fs, path)
            fs.get_file(path, str(local))
            after = _version(fs, path)
        if before != after or (size and before.get("size", str(size)) != str(size)):
            raise InputError(
                f"{shown} has changed since packing began: wait until no program writes the file, and run the same "
                f"command again"
            )
        yield local


def _version(fs: Any, path: str) -> dict[str, str]:
    """Return the values that a store changes with the content of a file.

    Empty for the hub: a file of the hub has a version of its own.
    """
    if fs.protocol == "hf":
        return {}
    fs.invalidate_cache()
    info = fs.info(path)
    return {key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}


class _Copies:
    """The folder of a process for copies: ``.exact-titan.HOST.PID`` in the folder of temporary files.

    The folder is removed when no copy is in use, and at the end of the process. After a kill, the next process that
    reads a URL removes the folder.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: Path | None = None
        self._in_use = 0

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make an empty folder until the context ends."""
        with self._lock:
            if self._root is None:
                self._root = self._make_root()
            self._in_use += 1
            root = self._root
        try:
            yield Path(tempfile.mkdtemp(dir=root))
        finally:
            with self._lock:
                self._in_use -= 1
                if not self._in_use:
                    self._remove()

    @staticmethod
    def _make_root() -> Path:
        try:
            root = partial_of(Path(tempfile.gettempdir()) / "exact-titan")
            root.mkdir(mode=0o700)
        except OSError as error:
            raise InputError(
                f"TMPDIR cannot be written: {error.strerror}: set it to a folder for copies of remote files"
            ) from error
        return root

    def _remove(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def remove_at_exit(self) -> None:
        """Remove the folder when the process ends. A forked process does not remove the folder of its parent."""
        atexit.register(self._remove)
        os.register_at_fork(after_in_child=self.__init__)  # type: ignore[misc]


_copies = _Copies()
_copies.remove_at_exit()


@functools.cache
def remove_abandoned_copies() -> None:
    """Remove the copies that killed processes have left."""
    with contextlib.suppress(OSError):
        partial_of(Path(tempfile.gettempdir()) / "exact-titan")


@contextmanager
def access(what: str) -> Iterator[None]:
    """Convert every error of a remote file system's library to an :class:`InputError` of one line."""
    try:
        yield
    except ImportError as error:
        scheme = what.removeprefix("source ").partition("://")[0]
        extra = f": pip install 'exact-titan[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise InputError(f"{what} cannot be read ({error}){extra}") from error
    except Exception as error:
        raise InputError(f"{what}{_why(error)}") from error


def _why(error: BaseException) -> str:
    # fsspec's HTTP library raises FileNotFoundError for any error of a server.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    if isinstance(error, FileNotFoundError) and (cause is None or _is_missing(cause)):
        return ": no such file or folder"
    error = cause or error
    if (
        isinstance(error, TimeoutError)
        or "timed out" in str(error).lower()
        or "timeout" in type(error).__name__.lower()
    ):
        return " cannot be read: the server did not answer in time (docs/data.md): try again later"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        place = tempfile.gettempdir()
        return f" cannot be copied to {place}: {error.strerror}: set TMPDIR to a folder with room for the file"
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f" cannot be read: {why[:_MOST_LETTERS]}{'…' if len(why) > _MOST_LETTERS else ''}"


def _is_missing(cause: BaseException) -> bool:
    return isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410)
