"""Let an elastic agent (torchrun, ``exact-titan train``) of the warm server fork its ranks instead of starting Python.

Everything else is the agent's own work: the rendezvous, the environment, the files, the signals, the exit codes. A rank
is a child process of the agent in a session of its own, as under the agent alone.

1. :func:`install` runs in the process of the agent before the agent's program. It forks a helper, which has one thread
   and knows nothing of the agent.
2. The agent asks the helper for every rank. The helper forks a process that forks the rank and ends.
3. The kernel gives the rank to the agent, because the agent adopts the orphans below it.
4. The rank takes over the command, the environment and the files of the request.
"""

import ctypes
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.01


class _Rank:
    """A rank, with the methods of ``subprocess.Popen`` that the agent calls."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a rank", timeout or 0)
            time.sleep(_LOOK_SECONDS)
        assert self.returncode is not None
        return self.returncode


def install(run: Callable[[list[str], dict[str, str], list[int]], None]) -> None:
    """Start the helper, and let the agent of this process ask it for ranks.

    Args:
        run: becomes a process with these arguments, this environment and these files 0 to 2. It does not return.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    ours, theirs = socket.socketpair()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.fork() == 0:
        ours.close()
        try:
            _serve(theirs, run)
        finally:
            os._exit(1)
    theirs.close()

    def popen(self: Any, args: tuple[str, ...], env: dict[str, str]) -> _Rank:
        with open(os.devnull) as stdin, tempfile.TemporaryFile() as request:
            request.write(json.dumps([args[1:], env]).encode())
            request.seek(0)
            output = [file.fileno() if file else number for number, file in ((1, self._stdout), (2, self._stderr))]
            socket.send_fds(ours, [b"-"], [request.fileno(), stdin.fileno(), *output])
            return _Rank(int(ours.recv(20)))

    SubprocessHandler._popen = popen  # type: ignore[assignment, method-assign]


def _serve(agent: socket.socket, run: Callable[[list[str], dict[str, str], list[int]], None]) -> None:
    while True:
        message, files, _, _ = socket.recv_fds(agent, 1, 4)
        if not message:
            return
        request, *files = files
        with open(request, "rb") as file:
            arguments, environment = json.load(file)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            between = os.getpid()
            rank = os.fork()
            if rank == 0:
                agent.close()
                os.close(reading)
                os.close(writing)
                os.setsid()
                while os.getppid() == between:
                    time.sleep(0.001)
                run(arguments, environment, files)
            os.write(writing, str(rank).encode())
            os._exit(0)
        os.waitpid(child, 0)
        agent.send(os.read(reading, 20))
        for one in (reading, writing, *files):
            os.close(one)
