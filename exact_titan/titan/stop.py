"""The agreement of all ranks on the point of the run where all ranks stop. Any rank can start the agreement."""

import contextlib
import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torchtitan.tools.logging import logger

from exact_titan.runs.exit_codes import Ended, ExitCode

STOP_FILE = "stop"
"""The stop file in the run's folder. The file has the effect of a signal. Rank 0 polls for the file, and removes it."""

_LOOK_SECONDS = 0.5
_DAY = timedelta(days=1)
_CLOSED = "closed"


class Stopped(Ended):
    """Raised on all ranks at the agreed point.

    Attributes:
        reason: the cause of the stop, such as ``SIGTERM on rank 3``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(ExitCode.SAVED)
        self.reason = reason


class StopAgreement:
    """The agreement on the stop, over the process group's store.

    Every rank passes the same points in the same order: one point before every step, and one before every validation
    batch. A rank calls :meth:`check` at every point.

    1. One rank is asked to stop, and writes the request to the store for all ranks.
    2. Every rank writes to the store how many points the rank has passed, and waits at its next point.
    3. Rank 0 writes the largest number of passed points to the store.
    4. Every rank continues to that point and stops there. No rank waits alone in a collective.

    The cost is one lock per point. Before a request no rank sends a message, runs a collective, or waits for its device
    or for another rank. After a request every host waits once, for a few messages over the store. One thread of each
    rank sleeps in the store until a request comes. One thread of rank 0 polls for the stop file twice a second.

    Args:
        folder: the run's folder, for the stop file.
        store: a store that all ranks share. Nothing else uses this store.
        rank: the rank of this process.
        ranks: number of processes.
    """

    def __init__(self, folder: Path, store: dist.Store, *, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._file = folder / STOP_FILE
        # The server of rank 0 ends with its object.
        self._store = cloning = cast(Any, store)  # torch's stubs lack clone()
        # A store serves one thread at a time.
        self._waiting, self._asking = cloning.clone(), cloning.clone()
        self._waiting.set_timeout(_DAY)
        self._lock, self._asking_lock = threading.Lock(), threading.Lock()
        self._points = 0
        self._stop_at: int | None = None
        self._reason: str | None = None
        self._taken_up, self._settled, self._closed = (threading.Event() for _ in range(3))
        self._threads = [threading.Thread(target=self._wait, name="stop agreement", daemon=True)]
        if self._rank == 0:
            self._threads.append(threading.Thread(target=self._look, name="stop file", daemon=True))
        for thread in self._threads:
            thread.start()

    @classmethod
    def of_process_group(cls, folder: Path) -> "StopAgreement":
        """Return an agreement of all ranks of the default process group, over a store in the process of rank 0.

        The store of the process group ends with torchrun, and the ranks stop when torchrun ends. A collective call.
        """
        rank, ranks = dist.get_rank(), dist.get_world_size()
        server = dist.TCPStore("localhost", 0, ranks, is_master=True, wait_for_workers=False) if rank == 0 else None
        box = [(_address(ranks), server.port) if server is not None else None]
        dist.broadcast_object_list(box)
        assert box[0] is not None
        store = server or dist.TCPStore(*box[0], ranks, is_master=False, wait_for_workers=False)
        return cls(folder, store, rank=rank, ranks=ranks)

    def ask(self, reason: str) -> None:
        """Ask all ranks to stop. Any thread of any rank may call this method. Only the first reason is used.

        After the call this rank passes no point until all ranks have agreed.

        Args:
            reason: the cause of the stop for the log, such as ``SIGTERM``.

        Raises:
            RuntimeError: if the store is not reachable. An agreement is then impossible.
        """
        if self._closed.is_set():
            return
        with self._asking_lock:
            named = self._asking.compare_set("reason", "", f"{reason} on rank {self._rank}").decode()
            self._asking.multi_set([self._asked(rank) for rank in range(self._ranks)], [named] * self._ranks)
        self._taken_up.wait()

    def check(self) -> None:
        """Pass a point of the run.

        Raises:
            Stopped: if the ranks have agreed to stop at this point.
            RuntimeError: if a rank was asked to stop and the ranks could not agree.
        """
        with self._lock:
            if self._reason is None:
                self._points += 1
                return
        self._settled.wait()
        if self._stop_at is None:
            raise RuntimeError(f"{self._reason}: the other ranks cannot be reached to agree on the step of the stop")
        if self._points >= self._stop_at:
            raise Stopped(self._reason)
        self._points += 1

    def close(self) -> None:
        """End the threads. Call this method after all ranks have passed their last point."""
        self._closed.set()
        try:
            with self._asking_lock:
                self._asking.compare_set(self._asked(self._rank), "", _CLOSED)
                # A rank that was asked to stop after the last point must not wait for other ranks.
                self._asking.multi_set([self._begun(self._rank), "stop_at"], [str(self._points)] * 2)
        except RuntimeError:
            return
        for thread in self._threads:
            thread.join(timeout=5)

    def _wait(self) -> None:
        try:
            reason = self._wait_for(self._asked(self._rank))
            if reason == _CLOSED or self._closed.is_set():
                return
            with self._lock:
                self._reason, begun = reason, self._points
            self._taken_up.set()
            self._waiting.set(self._begun(self._rank), str(begun))
            if self._rank == 0:
                logger.info(f"{self._reason}: the run stops after this step")
                everywhere = self._waiting.multi_get([self._begun(rank) for rank in range(self._ranks)])
                self._waiting.set("stop_at", str(max(map(int, everywhere))))
            self._stop_at = int(self._wait_for("stop_at"))
        except RuntimeError as error:
            if not self._closed.is_set():
                logger.warning(f"The store of rank 0 cannot be reached ({error}): signals can no longer stop the run")
        finally:
            self._taken_up.set()
            self._settled.set()

    def _wait_for(self, key: str) -> str:
        while True:
            try:
                self._waiting.wait([key], _DAY)
                return self._waiting.get(key).decode()
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:  # the wait of one day has timed out
                continue

    def _look(self) -> None:
        failing = False
        while not self._closed.wait(_LOOK_SECONDS):
            try:
                self._file.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                if not failing:
                    failing = True
                    logger.warning(f"{self._file} cannot be looked for ({error}): the run looks again twice a second")
                continue
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                logger.warning(f"{self._file} cannot be removed ({error}): remove it, or the next start stops, too")
            with contextlib.suppress(RuntimeError):  # the other thread logs that the store cannot be reached
                self.ask(f"The file {self._file}")
            return

    @staticmethod
    def _asked(rank: int) -> str:
        return f"asked/{rank}"

    @staticmethod
    def _begun(rank: int) -> str:
        return f"begun/{rank}"


def _address(ranks: int) -> str:
    """Return the address under which all ranks reach this machine.

    All ranks reach ``MASTER_ADDR``. If this machine is another machine, its address is the address of the network
    interface to ``MASTER_ADDR``. No packet is sent.
    """
    if ranks == 1:
        return "localhost"
    master = os.environ["MASTER_ADDR"]
    for family, kind, _, _, address in socket.getaddrinfo(
        master, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM
    ):
        with socket.socket(family, kind) as route, contextlib.suppress(OSError):
            route.connect(address)
            own = route.getsockname()[0]
            return master if own == route.getpeername()[0] else own
    return master
