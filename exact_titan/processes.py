"""The identity of a process: a process id alone may belong to another process later."""

import contextlib
import os
import socket
from pathlib import Path


def started(process: int) -> int | None:
    """Return the time at which a process of this machine started, in clock ticks since the boot. None: it has ended.

    A process that its parent has not collected yet (a zombie) has ended.
    """
    try:
        # The name of the program is in parentheses and may contain spaces and parentheses.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


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
