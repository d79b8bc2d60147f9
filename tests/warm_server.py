"""The server of :mod:`tests.warm_ranks`: ``python -m tests.warm_server SOCKET`` imports once and forks every launch."""

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests import forked_ranks

_LOOK_SECONDS = 0.02
_OTHERS_SECONDS = 0.1
"""Seconds from the failure of a rank to SIGTERM for the other ranks. torchrun checks its workers every 0.1 s."""

_TERM_SECONDS = 30.0
"""Seconds from SIGTERM to SIGKILL."""

_IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "torchtitan.trainer",
    "typeguard",
    "exact_titan.config",
    "exact_titan.config_registry",
    "exact_titan.launch.agent",
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
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT) for name in ("out", "err")]
    environment = request["environment"]
    if request["ranks"]:
        ranks = str(request["ranks"])
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": master_port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.chdir(request["cwd"])
    if request["agent"]:
        forked_ranks.install(_run_as_rank)
    _run_python(["-m", request["module"], *request["arguments"]], environment, files)


def _run_as_rank(arguments: list[str], environment: dict[str, str], files: list[int]) -> NoReturn:
    _exit_as(functools.partial(_run_python, arguments, environment, files))


def _run_python(arguments: list[str], environment: dict[str, str], files: list[int]) -> None:
    """Make this process equal to ``python [-u] (-m MODULE | SCRIPT) …``, and run the program.

    Args:
        arguments: the arguments of Python.
        environment: the environment.
        files: standard input, output and error.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    faulthandler.enable()  # a crash in native code shows its line of Python
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.modules["numpy"].random.seed()
    words = arguments[arguments[0] == "-u" :]
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    if words[0] != "-m":
        sys.path[:0] = [str(Path(words[0]).parent), *paths]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        return
    sys.path[:0] = [os.getcwd(), *paths]
    sys.argv = words[1:]
    # As with python -m: the module runs as __main__ and is not imported before.
    sys.modules.pop(words[1], None)
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)


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
