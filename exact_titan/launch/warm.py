"""Runs of one process each, forked from a process that has imported torch and torchtitan. For the CPU only.

A new process imports for longer than a tiny run trains (``benchmarks/warm_runs.py``). Python's fork server
(:mod:`multiprocessing`) imports once, and every run is a fork of it:

1. The fork server starts with SIGINT, SIGTERM, SIGUSR1 and SIGHUP blocked. A signal to the process group therefore does
   not end the fork server, and a signal to a run waits until the run can handle it.
2. The fork server imports. It starts no thread and opens no process group, because a fork keeps only one thread.
3. A run gets its own session, its environment and its log file, and calls :func:`exact_titan.train.main`.
4. A run ends with this process, also after a SIGKILL of this process. The fork server ends with its last run.

The fork server uses no device: a forked process cannot use a CUDA device that its parent has opened.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TypeVar

from exact_titan.errors import InputError
from exact_titan.system.folder_files import without_links

T = TypeVar("T")

_TRAIN = "exact_titan.train"
_IMPORTED = (
    _TRAIN,
    "exact_titan.config",
    "exact_titan.titan.preflight",
    "exact_titan.titan.trainer",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


class WarmRun:
    """A forked run, with the methods of ``subprocess.Popen`` that a study needs."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal. None: the run is running."""
        return self._process.exitcode

    def send_signal(self, sig: int, /) -> None:
        """Send a signal to the run. Do nothing if the run has ended."""
        if self.poll() is None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, sig)


class WarmProcesses:
    """Starts the fork server, and runs in it. The imports begin at once, in the background.

    Args:
        threads: threads of torch in every run. The variable ``OMP_NUM_THREADS`` of the user wins.
    """

    def __init__(self, *, threads: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_IMPORTED))
        added = {
            "OMP_NUM_THREADS": str(threads),
            # torch counts the GPUs without opening one.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            # pyarrow starts no thread.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        added = {name: value for name, value in added.items() if name not in os.environ}
        os.environ.update(added)
        # The start of the resource tracker unblocks signals, and the fork server would start it.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name in added:
                del os.environ[name]

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``, called in a fork. The function is imported there by its name."""
        return _call(self._context, function)

    def start(self, argv: list[str], log: Path, environment: dict[str, str]) -> WarmRun:
        """Start a run of one process.

        Args:
            argv: arguments of ``exact_titan.train``.
            log: file for the output. The run appends to the file.
            environment: further environment variables of the run.
        """
        process = self._context.Process(target=_run, args=(argv, str(log), environment), daemon=True)
        process.start()
        return WarmRun(process)


def in_new_process(function: Callable[[], T]) -> T:
    """Return ``function()``, called in a new process that may use an accelerator."""
    return _call(multiprocessing.get_context("spawn"), function)


def _call(context: BaseContext, function: Callable[[], T]) -> T:
    """Return ``function()``, called in a process of its own.

    Raises:
        InputError: of the function. After another exception, the process prints its traceback.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that called {function} ended with exit code {process.exitcode}") from None
    process.join()
    if error is not None:
        raise error
    return result


def _answer(sender: Connection, function: Callable[[], object]) -> None:
    try:
        sender.send((function(), None))
    except InputError as error:
        sender.send((None, error))


def number_of_devices() -> int:
    """Return the number of accelerators that torch finds."""
    import torch

    return torch.accelerator.device_count()


def _run(argv: list[str], log: str, environment: dict[str, str]) -> None:
    """Make this fork a process of its own, and train."""
    os.setsid()  # signals of the terminal go to the study, and the study passes them on
    threading.Thread(target=_end_with_starter, name="end with the study", daemon=True).start()
    end_with_parent(signal.SIGKILL)  # the parent is the fork server
    # A signal of the terminal that came before the new session is dropped, because the study passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab", buffering=0, opener=without_links) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    sys.argv = [_TRAIN, *argv]
    importlib.import_module(_TRAIN).main(argv)


def _end_with_starter() -> None:
    """Kill this process when the process that started it has ended."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send a signal to this process when its parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
