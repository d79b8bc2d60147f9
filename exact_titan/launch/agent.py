"""The processes of a run on this machine, under torch's elastic agent: torchrun without torchrun's own messages.

1. The agent starts one process per rank: ``python -m exact_titan.train …`` with torchrun's environment variables.
2. Rank 0 has the terminal. The output of every other rank goes to files.
3. SIGTERM, SIGINT, SIGUSR1 and SIGHUP go to all ranks. The ranks save and exit with 75. A second SIGINT kills the
   ranks. SIGKILL of the agent does not: the ranks save and end by themselves (:mod:`exact_titan.titan.agent_watch`).
4. After the end, the files move to ``<dump_folder>/logs``. If a rank crashed, the end of its errors is printed.
5. The exit code is the exit code of the ranks. torchrun replaces every exit code by 1.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

from exact_titan.errors import InputError
from exact_titan.runs import LOGS_FOLDER
from exact_titan.runs.exit_codes import ExitCode
from exact_titan.system import hangup
from exact_titan.system.folder_files import without_links

SIGNALS = "SIGTERM,SIGINT,SIGUSR1,SIGHUP"
"""Signals that the agent passes on to the ranks. Under ``nohup``, SIGHUP is ignored."""

SHUTDOWN_SECONDS = 600
"""Time for the save after a signal."""

_OWN_CODES = (ExitCode.INPUT_ERROR, ExitCode.NOT_FINITE, ExitCode.SAVED)

_SHOWN_LINES = 20
_SHOWN_RANKS = 2


def run(argv: list[str], *, nproc: int | None, dump_folder: Path) -> int:
    """Run ``python -m exact_titan.train`` with ``argv`` on every rank. Return the exit code of the run.

    Args:
        argv: arguments of ``exact_titan.train``.
        nproc: number of processes. None: the number of GPUs, or 1.
        dump_folder: folder of the run.

    Raises:
        InputError: if the machine has fewer GPUs than ``nproc``.
    """
    nproc = number_of_processes(nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    # The agent logs every step of its work. Its result is enough here.
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="exact_titan_"))
    agent = _Agent(argv, nproc, folder)
    try:
        return _wait(agent, dump_folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def number_of_processes(nproc: int | None) -> int:
    """Return ``nproc``, or the number of GPUs. Print the number if no option gives the number.

    Raises:
        InputError: if there are GPUs, but fewer than ``nproc``.
    """
    gpus = torch.accelerator.device_count()
    if nproc is None:
        reason = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU; --nproc N sets another number"
        nproc = max(1, gpus)
        print(f"Starting {nproc} process{'es' if nproc > 1 else ''} ({reason})", flush=True)
    elif 0 < gpus < nproc:
        raise InputError(f"--nproc is {nproc}, but this machine has {gpus} GPUs: each process needs its own GPU")
    return nproc


class _Agent(LocalElasticAgent):
    """The agent of one machine, with its own rendezvous on a free port.

    Attributes:
        killed: whether a second signal has killed the ranks.
    """

    def __init__(self, argv: list[str], nproc: int, logs: Path) -> None:
        rendezvous = RendezvousParameters(
            backend="c10d",
            endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr="localhost",
        )
        spec = WorkerSpec(
            role="rank",
            local_world_size=nproc,
            entrypoint=sys.executable,
            args=("-m", "exact_titan.train", *argv),
            rdzv_handler=registry.get_rendezvous_handler(rendezvous),
            max_restarts=0,
            monitor_interval=0.1,
            local_addr="localhost",
        )
        files = DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, nproc), Std.ALL))
        super().__init__(spec, files, shutdown_timeout=SHUTDOWN_SECONDS)
        self.killed = False

    def exit_codes(self) -> dict[int, int | None]:
        """Return the exit code of every started rank, negative after a signal, None while the rank runs."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {rank: handler.proc.poll() for rank, handler in handlers.items()}

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """Send a signal to all ranks and wait until the ranks have ended. A second SIGINT kills the ranks.

        A batch system may send the same signal to the agent more than once. Only a second SIGINT, the Ctrl-C of a
        person, therefore kills the ranks. torchrun itself would wait again after a second signal.
        """
        end = time.monotonic() + timeout
        try:
            super()._shutdown(death_sig, timeout)
        except SignalException as error:
            second = error.sigval
            while None in self.exit_codes().values():
                if second == signal.SIGINT or time.monotonic() > end:
                    self._kill()
                    break
                try:
                    time.sleep(0.1)
                except SignalException as another:
                    second = another.sigval

    def _kill(self) -> None:
        self.killed = True
        for rank, code in self.exit_codes().items():
            if code is None and self._pcontext is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pcontext.pids()[rank], signal.SIGKILL)
        while None in self.exit_codes().values():
            time.sleep(0.05)

    def output(self, rank: int, stream: str) -> Path | None:
        """Return the file with the output of a rank. None if the output goes to the terminal."""
        files = getattr(self._pcontext, f"{stream}s", {})
        return Path(files[rank]) if files.get(rank) else None


def _wait(agent: _Agent, dump_folder: Path) -> int:
    """Run the agent to its end. Return the exit code of the run."""
    handled = [name for name in SIGNALS.split(",") if name != "SIGHUP" or hangup.is_handled()]
    terminals = hangup.Terminals()
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(handled)
    for name in handled:
        signal.signal(getattr(signal, name), _stop_before_start)
    failures: dict[int, ProcessFailure] = {}
    try:
        failures = agent.run().failures
    except SignalException as error:
        if error.sigval == signal.SIGHUP:
            terminals.leave()
        if not agent.exit_codes():
            print(f"exact-titan train: {error.sigval.name}: stopped before the start", file=sys.stderr, flush=True)
            return ExitCode.SAVED
    codes = agent.exit_codes()
    logs = _keep_logs(agent, dump_folder)
    if agent.killed:
        print("exact-titan train: killed after the second signal; the last checkpoint counts", file=sys.stderr)
        return 128 + signal.SIGINT
    if not any(codes.values()):
        return ExitCode.FINISHED
    own = [code for code in codes.values() if code in _OWN_CODES]
    if own:
        _repeat_messages(logs)
        return own[0]
    _report_crash(codes, failures, logs)
    return 1


def _stop_before_start(number: int, frame: FrameType | None) -> NoReturn:
    raise SignalException("stopped before the start", signal.Signals(number))


def _keep_logs(agent: _Agent, dump_folder: Path) -> dict[int, Path]:
    """Append the output of the ranks to ``<dump_folder>/logs``. Return the errors of the ranks.

    A run that ends before it has made its folder leaves no files.
    """
    errors: dict[int, Path] = {}
    for rank in agent.exit_codes():
        for stream in ("stdout", "stderr"):
            file = agent.output(rank, stream)
            if file is None or not file.exists() or not file.stat().st_size:
                continue
            if dump_folder.is_dir():
                kept = dump_folder / LOGS_FOLDER / f"rank_{rank}.{stream}.log"
                with contextlib.suppress(OSError):
                    kept.parent.mkdir(exist_ok=True)
                    with open(kept, "ab", opener=without_links) as out, file.open("rb") as text:
                        shutil.copyfileobj(text, out)
                    os.utime(kept, (file.stat().st_atime, file.stat().st_mtime))
                    file = kept
            if stream == "stderr":
                errors[rank] = file
    return errors


def _repeat_messages(errors: dict[int, Path]) -> None:
    """Print the messages of the ranks whose errors are not on the screen. Rank 0 may have no error."""
    for file in errors.values():
        for line in _lines(file):
            if line.startswith("exact_titan.train:"):
                print(line, file=sys.stderr, flush=True)


def _report_crash(codes: dict[int, int | None], failures: dict[int, ProcessFailure], errors: dict[int, Path]) -> None:
    """Print which ranks crashed, and the end of the errors of the first ranks whose errors are not on the screen."""
    first = min((failure.timestamp for failure in failures.values()), default=0)
    # The agent ends the other ranks after the first failure. Their exit codes come later.
    ended = [rank for rank, failure in failures.items() if failure.timestamp == first] or [
        rank for rank, code in codes.items() if code
    ]
    # A rank that still cleans up after its error is ended by the agent, because another rank lost the connection to it.
    raised = {rank for rank, file in errors.items() if codes.get(rank) == -signal.SIGTERM and _traceback(file)}
    crashed = {rank for rank in ended if codes.get(rank) != -signal.SIGTERM} | raised or set(ended)
    # The rank that wrote its errors first is probably the cause.
    hidden = sorted((rank for rank in crashed if rank in errors), key=lambda rank: errors[rank].stat().st_mtime)
    for rank in hidden[:_SHOWN_RANKS]:
        print(f"exact-titan train: rank {rank} crashed, the end of its errors:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in _lines(errors[rank])[-_SHOWN_LINES:]), file=sys.stderr)
    how = ", ".join(
        f"rank {rank} {'raised an error' if rank in raised else _how(codes.get(rank))}" for rank in sorted(crashed)
    )
    where = sorted({str(errors[rank].parent) for rank in hidden})
    print(f"exact-titan train: crashed: {how}{f'; see {where[0]}' if where else ''}", file=sys.stderr, flush=True)


def _traceback(errors: Path) -> bool:
    return any("Traceback (most recent call last)" in line for line in _lines(errors))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code}"
