"""Start ranks without the imports: one process imports torch, torchtitan and this package, and every launch forks it.

A launch of two ranks under torchrun spends most of its CPU time on the imports of three processes. Here a test session
imports once. Other tests use real torchrun for torchrun's own work: the agent, the signals, the report.

1. The first launch of a test session starts the server: ``python -m tests.warm_server SOCKET``. The server imports,
   starts no thread, opens no process group, and listens on a Unix socket.
2. Every connection to the socket is one launch. The server forks a supervisor for the launch.
3. The supervisor forks the ranks, and hosts their store as torchrun's agent does. The supervisor sends the process ids
   of the ranks to the test.
4. A rank takes the working directory, the environment and the output files of the launch. The rank then runs a module
   as ``python -m`` does.
5. When a rank fails, the supervisor ends the other ranks with SIGTERM, as torchrun's agent does. The supervisor sends
   the exit codes to the test.
6. A launch ends with its connection, its ranks end with their supervisor, and the server ends with the test session.

Ranks differ from torchrun's ranks in two ways: torchtitan's sleep of 2 s at the end of a run does not happen, and all
ranks have the same hash seed. :mod:`tests.warm_agent` also runs torchrun's agent, with forks as ranks.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LOOK_SECONDS = 0.02


class Run:
    """A run in the background of a test."""

    def output(self) -> str:
        """Return the output so far."""
        raise NotImplementedError

    def running(self) -> bool:
        """Return whether the run may still print."""
        raise NotImplementedError

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Wait until the run has printed ``text``."""
        self.wait_until(lambda: text in self.output(), text, timeout)

    def wait_until(self, condition: Callable[[], bool], name: str, timeout: float = 120) -> None:
        """Wait until ``condition`` is true. Fail if the run ends before."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.running() or condition(), f"ended before {name}:\n{self.output()}"
            assert time.monotonic() < end, f"no {name}:\n{self.output()}"
            time.sleep(_LOOK_SECONDS)


class Launch(Run):
    """Running ranks.

    Attributes:
        pids: the process id of each rank.
        codes: the exit code of each rank, negative after a signal, as in ``subprocess``. None until all ranks have
            ended.
    """

    def __init__(self, connection: socket.socket, out: Path, err: Path) -> None:
        self._lines = connection.makefile("r")
        self._connection, self._out, self._err = connection, out, err
        self.pids: list[int] = self._receive()
        self.codes: list[int] | None = None

    def _receive(self) -> Any:
        line = self._lines.readline()
        assert line, f"the supervisor has gone:\n{self.output()}"
        return json.loads(line)

    @property
    def stdout(self) -> str:
        """Standard output of all ranks so far. Also standard error, if standard error goes to the same file."""
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error of all ranks so far."""
        return self._err.read_text(errors="replace")

    def output(self) -> str:
        """Return the output so far."""
        return self.stdout if self._out == self._err else self.stdout + self.stderr

    def running(self) -> bool:
        """Return whether a rank may still run."""
        if self.codes is None and select.select([self._connection], [], [], 0)[0]:
            self.codes = self._receive()
        return self.codes is None

    def workers(self) -> list[int]:
        """Return the process ids of the living ranks, in the order of the ranks."""
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]

    def send_signal(self, number: int) -> None:
        """Send a signal to every rank, as torchrun's agent does with a signal."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, timeout: float = 120) -> list[int]:
        """Wait until all ranks have ended by themselves. Return :attr:`codes`."""
        end = time.monotonic() + timeout
        while self.running():
            assert time.monotonic() < end, f"no end:\n{self.output()}"
            select.select([self._connection], [], [], 1)
        assert self.codes is not None
        return self.codes

    def kill(self) -> None:
        """Send SIGKILL to every rank, as in a failure of the machine. Wait until all ranks have ended."""
        if self.running():
            self.send_signal(signal.SIGKILL)
            self.end()

    def close(self) -> None:
        """Kill the ranks that still run, and close the connection."""
        try:
            self.kill()
        finally:
            self._lines.close()
            self._connection.close()


@dataclasses.dataclass
class Finished:
    """The result of ranks that have ended.

    Attributes:
        codes: exit code of each rank, negative after a signal.
        stdout: standard output of all ranks.
        stderr: standard error of all ranks.
    """

    codes: list[int]
    stdout: str
    stderr: str


def run(ranks: int, module: str, *arguments: object, cwd: Path, timeout: float = 300, agent: bool = False) -> Finished:
    """Run ``python -m module arguments…`` in ``ranks`` processes. The environment of each process has its rank.

    Args:
        ranks: number of ranks. 0: one process without torchrun's environment variables.
        module: a module of the package, the tests or the benchmarks.
        arguments: arguments of the module.
        cwd: working directory.
        timeout: seconds until the ranks are killed and the test fails.
        agent: whether the module starts ranks with an elastic agent. The ranks are then forks, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with contextlib.closing(launch(ranks, module, arguments, cwd, out, err, agent=agent)) as started:
            codes = started.end(timeout)
        return Finished(codes, started.stdout, started.stderr)


@contextlib.contextmanager
def background(ranks: int, module: str, *arguments: object, cwd: Path) -> Iterator[Launch]:
    """Start :func:`run` in the background of the test. The end of the context kills ranks that still run."""
    log = cwd / "ranks.log"
    log.unlink(missing_ok=True)
    with contextlib.closing(launch(ranks, module, arguments, cwd, log, log)) as started:
        yield started


def launch(
    ranks: int, module: str, arguments: Sequence[object], cwd: Path, out: Path, err: Path, *, agent: bool = False
) -> Launch:
    """Start :func:`run`, with files for standard output and standard error. The two files may be one file."""
    for file in (out, err):
        file.touch()
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    request = {
        "ranks": ranks,
        "module": module,
        "arguments": [str(argument) for argument in arguments],
        "cwd": str(cwd),
        "out": str(out),
        "err": str(err),
        "agent": agent,
        "environment": inherited | _ENVIRONMENT | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths},
    }
    connection = socket.socket(socket.AF_UNIX)
    with _STARTING:
        server = _server()
    connection.connect(server)
    connection.sendall(json.dumps(request).encode() + b"\n")
    return Launch(connection, out, err)


_STARTING = threading.Lock()


@functools.cache
def _server() -> str:
    """Start the server, and return the path of its socket. The server ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm_ranks")
    path = f"{folder.name}/socket"
    # Only the forking thread exists after a fork. A lock of another thread would stay locked.
    environment = os.environ | _ENVIRONMENT | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.warm_server", path],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def stop(stdin: IO[bytes] = process.stdin) -> None:
        stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(stop)
    assert process.stdout.readline() == b"listens\n"
    return path
