"""Start ranks without the imports: one process imports torch, torchtitan and this package, and every launch forks it.

A launch of two ranks under torchrun spends most of its CPU time on the imports of three processes. Here a test session
imports once. Other tests use real torchrun for torchrun's own work: the agent, the signals, the report.

1. The first launch of a test session starts the server: ``python -m tests.warm_ranks SOCKET``. The server imports,
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
ranks have the same hash seed.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LOOK_SECONDS = 0.02
_OTHERS_SECONDS = 0.1
"""Seconds from the failure of a rank to SIGTERM for the other ranks. torchrun checks its workers every 0.1 s."""

_TERM_SECONDS = 30.0
"""Seconds from SIGTERM to SIGKILL."""


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


def run(ranks: int, module: str, *arguments: object, cwd: Path, timeout: float = 300) -> Finished:
    """Run ``python -m module arguments…`` in ``ranks`` processes. The environment of each process has its rank.

    Args:
        ranks: number of ranks. 0: one process without torchrun's environment variables.
        module: a module of the package, the tests or the benchmarks.
        arguments: arguments of the module.
        cwd: working directory.
        timeout: seconds until the ranks are killed and the test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with contextlib.closing(_launch(ranks, module, arguments, cwd, out, err)) as launch:
            codes = launch.end(timeout)
        return Finished(codes, launch.stdout, launch.stderr)


@contextlib.contextmanager
def background(ranks: int, module: str, *arguments: object, cwd: Path) -> Iterator[Launch]:
    """Start :func:`run` in the background of the test. The end of the context kills ranks that still run."""
    log = cwd / "ranks.log"
    log.unlink(missing_ok=True)
    with contextlib.closing(_launch(ranks, module, arguments, cwd, log, log)) as launch:
        yield launch


def _launch(ranks: int, module: str, arguments: Sequence[object], cwd: Path, out: Path, err: Path) -> Launch:
    for file in (out, err):
        file.touch()
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    request = {
        "ranks": ranks,
        "module": module,
        "arguments": [str(argument) for argument in arguments],
        "cwd": str(cwd),
        "out": str(out),
        "err": str(err),
        "environment": inherited | _ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
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
        [sys.executable, "-u", "-m", "tests.warm_ranks", path],
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


_IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "torchtitan.trainer",
    "typeguard",
    "exact_titan.config",
    "exact_titan.config_registry",
    "exact_titan.packing",
    "exact_titan.planning.run",
    "exact_titan.runs.export",
    "exact_titan.titan.preflight",
    "exact_titan.titan.trainer",
)
"""Modules that a run imports, without the modules that may run as ``__main__``."""


def _warm_up() -> None:
    """Import the modules of a run, and remove torchtitan's sleep."""
    from exact_titan.titan import cpu, torch_versions

    torch_versions.install()
    cpu.install()
    modules = {name: importlib.import_module(name) for name in _IMPORTED}
    awake = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    modules["torchtitan.trainer"].time = awake  # type: ignore[attr-defined]


def _serve(path: str) -> None:
    _warm_up()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: {threading.enumerate()}"
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listens", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _exit_as(functools.partial(_supervise, connection))
            connection.close()


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(connection: socket.socket) -> None:
    """Read a launch from the connection, fork its ranks, wait for the ranks, and send their exit codes."""
    with connection.makefile("r") as lines:
        request = json.loads(lines.readline())
    ranks = request["ranks"]
    pids, ports = [], []
    for rank in range(ranks or 1):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.close(writing)
            _exit_as(functools.partial(_run_rank, rank, request, reading))
        os.close(reading)
        pids.append(pid)
        ports.append(writing)
    # The store starts a thread, so it must start after all forks. The store takes a free port.
    store = _agent_store() if ranks else None
    for writing in ports:
        os.write(writing, str(store.port if store else 0).encode())
        os.close(writing)
    connection.sendall(json.dumps(pids).encode() + b"\n")
    codes = _wait(pids, connection)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(json.dumps(codes).encode() + b"\n")


def _agent_store() -> Any:
    import torch.distributed as dist

    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def _wait(pids: list[int], connection: socket.socket) -> list[int]:
    """Wait for the ranks and return their exit codes. Kill the ranks if the test has closed the connection."""
    codes: dict[int, int] = {}
    term = kill = float("inf")
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        now = time.monotonic()
        if any(codes.values()) and term == kill:
            term, kill = now + _OTHERS_SECONDS, now + _OTHERS_SECONDS + _TERM_SECONDS
        number = None
        if now >= kill or (select.select([connection], [], [], _LOOK_SECONDS)[0] and not connection.recv(1)):
            number = signal.SIGKILL
        elif now >= term:
            number, term = signal.SIGTERM, float("inf")
        for pid in pids:
            if number is not None and pid not in codes:
                os.kill(pid, number)
    return [codes[pid] for pid in pids]


def _run_rank(rank: int, request: dict[str, Any], port: int) -> None:
    """Make this process equal to a process that torchrun starts with ``python -m``, and run the module."""
    # The rank ends with its supervisor.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    master_port = os.read(port, 10).decode()
    os.close(port)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT) for name in ("out", "err")]
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["ranks"]:
        ranks = str(request["ranks"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=master_port, TORCHELASTIC_USE_AGENT_STORE="True")
    os.chdir(request["cwd"])
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.argv = [request["module"], *request["arguments"]]
    # As with python -m: the module runs as __main__ and is not imported before.
    sys.modules.pop(request["module"], None)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _exit_as(program: Callable[[], None]) -> NoReturn:
    """Run the program and end this process as Python does: traceback, wait for threads, atexit, exit code."""
    code = 1
    try:
        try:
            program()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except KeyboardInterrupt:
            traceback.print_exc()
            code = -signal.SIGINT
        except BaseException:
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code & 0xFF)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
