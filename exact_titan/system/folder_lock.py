"""The lock of a folder or file that one process at a time may write: runs, packing, studies, answers.

The lock is a file with one line of JSON about its holder: host, process id, start of the process.

1. On most file systems the kernel's lock of the file (flock) decides. The lock ends with its process, also after
   SIGKILL.
2. On some network file systems the kernel's lock fails, or reaches only the processes of one machine. There the line
   decides. On the same machine, the lock is stale if the process has ended. A process with the same
   id and another start is another process. On another machine, the lock is stale if the holder's heartbeat stops: the
   holder touches the file every 10 s.
3. The end of the lock removes the file, and the folders that the lock has made and that are still empty.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.system import processes
from exact_titan.system.json_files import read_json_object

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""Time between two heartbeats."""

_WATCHED_BEATS = 4
_SETTLE_SECONDS = 1.0
"""Time in which another process sees a written line, on a file system without the kernel's lock."""

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_open_locks: set[int] = set()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: name of the machine.
        process: process id.
        since: UTC time of the lock, such as ``2026-01-31 12:00:00``.
        machine: :func:`exact_titan.system.processes.machine` of the process.
        started: :func:`exact_titan.system.processes.started` of the process.
        beats: whether the process touches the file every 10 s.
    """

    host: str
    process: int
    since: str
    machine: str
    started: int | None
    beats: bool

    @classmethod
    def this(cls, *, beats: bool) -> "Holder":
        """Return this process as the holder of a new lock."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        own = os.getpid()
        return cls(os.uname().nodename, own, now, processes.machine(), processes.started(own), beats)

    def __str__(self) -> str:
        ended = self.machine == processes.machine() and processes.started(self.process) != self.started
        more = ", which has ended; a process that it started still works" if ended else ""
        return f"process {self.process} on {self.host}, since {self.since} UTC{more}"


class HeldError(InputError):
    """Another process holds the lock."""


class _HeldBy(Exception):
    def __init__(self, holder: Holder | None, hint: str = "") -> None:
        super().__init__(f"{holder or 'a process that has just started'}{hint}")


@contextlib.contextmanager
def locked(file: Path, held: str, way_out: str, *, inherited: bool = False, beats: bool = False) -> Iterator[None]:
    """Hold a lock. Make the folder of the lock's file if it does not exist.

    Args:
        file: the file of the lock. Every process that writes the folder names the same file.
        held: start of the message if another process holds the lock.
        way_out: end of that message.
        inherited: whether the lock lasts until the processes that inherit the open file have ended, too. The file then
            stays.
        beats: whether a thread touches the file every 10 s. Without a heartbeat, the lock of another machine is stale
            when the kernel gives the lock to this process.

    Raises:
        HeldError: ``held (process PID on HOST, since TIME UTC): way_out``, if another process holds the lock.
        InputError: if the file is a link, a pipe or a device.
        OSError: if the folder or the file cannot be written.
    """
    me = Holder.this(beats=beats)
    made = [one for one in (file.parent, *file.parent.parents) if not one.exists()]
    over = threading.Event()
    lock = None
    try:
        lock = _take(file, me)
        if inherited:
            os.set_inheritable(lock, True)
        else:
            _open_locks.add(lock)
        if beats:
            threading.Thread(target=_beat, args=(lock, file, over), name="heartbeat of the lock", daemon=True).start()
        yield
    except _HeldBy as error:
        raise HeldError(f"{held} ({error}): {way_out}") from None
    finally:
        over.set()
        if os.getpid() == me.process:
            with contextlib.suppress(OSError):
                if lock is not None and not inherited and _is(lock, file):
                    file.unlink()
                for folder in made:
                    folder.rmdir()
            if lock is not None:
                _open_locks.discard(lock)
                os.close(lock)


def check_free(file: Path, held: str, way_out: str) -> None:
    """Raise the error of :func:`locked` if another process holds the lock. The lock and its folder stay as they are.

    Raises:
        HeldError: as :func:`locked`.
        OSError: as :func:`locked`.
    """
    if file.exists():
        with locked(file, held, way_out):
            pass


def _take(file: Path, me: Holder) -> int:
    """Return the descriptor of the locked file, with the line of ``me``."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The line of the holder replaces the content of the file, and must not replace a file behind a link.
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the end of another lock has just removed the folder
            continue
        except OSError as error:
            if not file.is_symlink():
                raise
            raise InputError(f"{file} is a link, and no lock of exact_titan: remove the link") from error
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise InputError(f"{file} is a pipe or a device, and no lock of exact_titan: give it another name")
            kernel = _flock(lock)
            if not _is(lock, file):  # the end of another lock has just removed the file
                os.close(lock)
                continue
            _check_line(file, _read(file), kernel=kernel)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(dataclasses.asdict(me)).encode() + b"\n", 0)
            os.fsync(lock)
            if not kernel:
                time.sleep(_SETTLE_SECONDS)
                if (now := _read(file)) != me:
                    raise _HeldBy(now)
            return lock
        except BlockingIOError:
            os.close(lock)
            raise _HeldBy(_read(file)) from None
        except BaseException:
            os.close(lock)
            raise


def _flock(lock: int) -> bool:
    """Take the kernel's lock. Return False if the file system has no such locks.

    Raises:
        BlockingIOError: if another process has the lock.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:  # some network file systems say this of a lock that another process has
        raise BlockingIOError from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return True


def _check_line(file: Path, holder: Holder | None, *, kernel: bool) -> None:
    """Refuse the lock of a holder that still works, as far as the kernel's lock does not decide."""
    if holder is None:
        return
    if holder.machine == processes.machine():
        if not kernel and processes.started(holder.process) == holder.started:
            raise _HeldBy(holder)
    elif holder.beats:
        seconds = _WATCHED_BEATS * BEAT_SECONDS
        logger.warning(f"{file} names {holder}: this start looks for signs of that process for {seconds:.0f} s")
        if _changes(file, seconds):
            raise _HeldBy(holder)
    elif not kernel:
        raise _HeldBy(holder, f"; if that process has ended, remove the lock {file}")


def _changes(file: Path, seconds: float) -> bool:
    """Return whether the holder touches the file within a time."""
    first, end = _touched(file), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 10)
        if _touched(file) != first:
            return True
    return False


def _touched(file: Path) -> int:
    # A network file system asks its server for the time of a file when the file is opened.
    with file.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime_ns


def _read(file: Path) -> Holder | None:
    """Return the holder that the file names. None: no holder, or an incomplete line."""
    try:
        values = read_json_object(file)
        holder = Holder(**{field.name: values[field.name] for field in dataclasses.fields(Holder)})
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return holder if type(holder.process) is int else None


def _is(lock: int, file: Path) -> bool:
    """Return whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(lock), file.stat())
    except FileNotFoundError:
        return False


def _beat(lock: int, file: Path, over: threading.Event) -> None:
    told = False
    while not over.wait(BEAT_SECONDS):
        try:
            os.utime(lock)
        except OSError as error:
            if not told and not over.is_set():
                told = True
                logger.warning(f"{file} cannot be touched ({error}): the heartbeat is tried again every 10 s")


def _close_in_child() -> None:
    # Otherwise a forked process would hold the lock after the end of its parent.
    for lock in _open_locks:
        with contextlib.suppress(OSError):
            os.close(lock)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)
