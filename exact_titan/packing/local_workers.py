"""Pack the parts of a job with worker processes of this machine.

1. The command starts the workers, and gives every worker one part at a time.
2. A worker packs its part and answers. The command gives the worker the next part.
3. A worker that ends before its answer ends the command at once. The error names the part and the signal.
4. At the end the command ends all workers. A worker whose command was killed ends itself.

The pools of Python do not meet points 3 and 4: ``multiprocessing.Pool`` waits for ever for the result of a killed
worker, and the workers of ``concurrent.futures`` outlive a killed command.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Thread
from types import FrameType

from exact_titan.errors import InputError
from exact_titan.packing.failures import killed
from exact_titan.packing.interrupt import ending_at_once
from exact_titan.packing.parts import Part
from exact_titan.packing.tasks import PackingJob, PartPacker
from exact_titan.packing.work_folder import WorkFolder
from exact_titan.system.exits import dropped_exits_repeated

GRACE_SECONDS = 3.0
"""Time for a worker to clean up after SIGTERM. Then the worker gets SIGKILL."""


def pack_with_workers(job: PackingJob, job_file: Path, work: WorkFolder, processes: int, threads: int) -> None:
    """Pack all parts of the job.

    Args:
        job: the job.
        job_file: file of the job. The workers read the file.
        work: the work folder.
        processes: number of workers.
        threads: number of the tokenizer's threads of each worker.

    Raises:
        InputError: with the first error of a worker, or if a worker ends. No worker is left.
    """
    context = multiprocessing.get_context("forkserver")
    # The fork server imports this module once. Every worker is forked from the fork server.
    context.set_forkserver_preload([__name__])
    parts = iter(job.parts)
    workers: dict[Connection, _Worker] = {}
    try:
        for _ in range(processes):
            worker = _Worker(context, job, job_file, work, threads)
            workers[worker.connection] = worker
        working = dict(workers)
        while working:
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                working[connection].finish_part()
                if (part := next(parts, None)) is not None:
                    working[connection].start_part(part)
                else:
                    working.pop(connection).let_end()
    except BaseException:
        _signal(workers, signal.SIGTERM)
        raise
    finally:
        _wait_for_end(workers)
        _signal(workers, signal.SIGKILL)
        _wait_for_end(workers)
        for worker in workers.values():
            worker.close()


class _Worker:
    """A worker process.

    Attributes:
        connection: readable when the worker has an answer, and after the end of the worker.
    """

    def __init__(
        self, context: ForkServerContext, job: PackingJob, job_file: Path, work: WorkFolder, threads: int
    ) -> None:
        self._job = job
        self._part: Part | None = None
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, job_file, work, threads, os.getcwd()), daemon=True)
        try:
            self._process.start()
        except (OSError, EOFError) as error:  # of the fork server
            raise InputError(f"a worker process cannot start ({error}): use fewer --workers") from error
        finally:
            other.close()

    def start_part(self, part: Part) -> None:
        """Give the worker a part."""
        self._part = part
        with suppress(OSError):  # finish_part reports the end of the worker
            self.connection.send(part)

    def finish_part(self) -> None:
        """Take the worker's answer, about its start or about its part.

        Raises:
            InputError: if the worker has ended, or with the worker's error.
        """
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(GRACE_SECONDS)
            part = None if self._part is None else self._job.name(self._part)
            raise InputError(killed(self._process.exitcode, part)) from None
        if error is not None:
            raise error
        self._part = None

    def let_end(self) -> None:
        """Tell the worker that no part is left."""
        with suppress(OSError):
            self.connection.send(None)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the worker has not ended."""
        # The open pipe shows that the process number still belongs to the worker.
        if not self.has_ended(0) and self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def has_ended(self, seconds: float) -> bool:
        """Wait until the worker's end of the pipe is closed. The kernel closes the end of a killed worker, too."""
        deadline = time.monotonic() + seconds
        try:
            while self.connection.poll(max(0.0, deadline - time.monotonic())):
                self.connection.recv()
        except (EOFError, OSError):
            return True
        return False

    def close(self) -> None:
        """Release the pipe and the process number of an ended worker."""
        self._process.join(0)
        self.connection.close()


def _signal(workers: dict[Connection, _Worker], number: signal.Signals) -> None:
    for worker in workers.values():
        worker.signal(number)


def _wait_for_end(workers: dict[Connection, _Worker]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers.values():
        worker.has_ended(max(0.0, deadline - time.monotonic()))


def _work(connection: Connection, job_file: Path, work: WorkFolder, threads: int, cwd: str) -> None:
    """Pack parts until the command sends None. Answer the start and every part with None or with the error."""
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    # The fork server may have been started by a thread that blocks signals, and its children inherit the mask.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    # Ctrl-C reaches all processes of the terminal. The command ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _end)
    # The fork server may be older than this command, and may have another working directory. Paths may be relative.
    os.chdir(cwd)
    with dropped_exits_repeated(), ending_at_once():
        try:
            packer = PartPacker(PackingJob.read(job_file), work, threads)
            connection.send(None)
            while (part := connection.recv()) is not None:
                packer.pack(part)
                connection.send(None)
        except Exception as error:
            connection.send(_sendable(error))


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)  # an exit by exception removes the unfinished part and the copies of remote files


def _sendable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, or, if pickle cannot copy the error, an error of the same text."""
    if isinstance(error, InputError):
        return InputError(str(error))
    trace = "".join(traceback.format_exception(error))
    error.add_note(f"in a worker:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error


def _end_with_parent() -> None:
    """End this worker when its command ends, also by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGKILL)
