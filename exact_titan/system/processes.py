"""The identity of a process: a process id alone may belong to another process later."""

import contextlib
import os
import socket
from pathlib import Path


def started(process: int) -> int | None:
    """Return the time at which a process of this machine started, in clock ticks since the boot.

    None: the process has ended.
    A process that its parent has not collected yet (a zombie) has ended.
    """
    fields = _stat(process)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def parent(process: int) -> int:
    """Return the id of the parent of a process. 0: the process has ended, or has no parent here."""
    fields = _stat(process)
    return int(fields[1]) if fields else 0


def words(process: int) -> list[str]:
    """Return the command line of a process. Empty: the process has ended, or cannot be seen."""
    return _strings(process, "cmdline")


def environment(process: int) -> list[str]:
    """Return the environment with which a process started, as ``NAME=VALUE``.

    Empty: the process has ended, or cannot be seen.
    """
    return _strings(process, "environ")


def machine() -> str:
    """Return the identity of this boot of this machine, and of the process ids that this process sees.

    Two containers of one machine have different process ids, and possibly the same host name.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _stat(process: int) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` after the name, from the state on."""
    try:
        # The name of the program is in parentheses and may contain spaces and parentheses.
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _strings(process: int, file: str) -> list[str]:
    try:
        text = Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return []
    return text.decode(errors="replace").split("\0")[:-1]
