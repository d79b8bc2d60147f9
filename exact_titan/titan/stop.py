"""All ranks stop at the same point of the run, whichever of them is asked to."""

import contextlib
import itertools
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torchtitan.tools.logging import logger

from exact_titan.runs.exit_codes import Ended, ExitCode

STOP_FILE = "stop"
"""In the run's folder: as good as a signal. Rank 0 looks for it, and removes it when it has seen it."""

_LOOK_SECONDS = 0.5
_DAY = timedelta(days=1)
_CLOSED = "closed"


class Stopped(Ended):
    """Raised on all ranks at the point where they have agreed to stop.

    Attributes:
        reason: what asked for it, such as ``SIGTERM on rank 3``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(ExitCode.SAVED)
        self.reason = reason


class StopAgreement:
    """Where all ranks stop, agreed on over the process group's store.

    Every rank passes the same points in the same order (before a step, before a batch of a validation) and calls
    :meth:`check` there. When one is asked to stop, each says how many points it has passed and waits at its next one;
    the stop is at the furthest of them, so no rank is left alone in a collective.

    What it costs: a lock per point. Nothing is sent, no collective is run, and no host waits for its device or for
    another rank, in any step until a stop is asked for; then every host waits once, for a few messages over the store.
    A thread of each rank sleeps in the store meanwhile, and one of rank 0 looks for the stop file twice a second.

    Args:
        folder: the run's, for the stop file.
        store: shared by all ranks, and used for nothing else.
        rank: of this process.
        ranks: number of processes.
    """

    _instances = itertools.count()

    def __init__(self, folder: Path, store: dist.Store, *, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._file = folder / STOP_FILE
        cloning: Any = store  # torch's stubs do not know the method
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
        """An agreement of all ranks of the default process group; each builds its agreements in the same order."""
        store = dist.distributed_c10d._get_default_store()
        own = dist.PrefixStore(f"exact_titan/stop/{next(cls._instances)}", store)
        return cls(folder, own, rank=dist.get_rank(), ranks=dist.get_world_size())

    def ask(self, reason: str) -> None:
        """Ask all ranks to stop; any rank and any thread may. The first reason is the one that counts.

        On this rank no point is passed any more before all have agreed.

        Args:
            reason: for the log, such as ``SIGTERM``.

        Raises:
            RuntimeError: if the store is gone, and with it the agreement.
        """
        with self._asking_lock:
            named = self._asking.compare_set("reason", "", f"{reason} on rank {self._rank}").decode()
            self._asking.multi_set([self._asked(rank) for rank in range(self._ranks)], [named] * self._ranks)
        self._taken_up.wait()

    def check(self) -> None:
        """A point of the run.

        Raises:
            Stopped: if it is the one to stop at.
            RuntimeError: if a stop was asked for and the ranks could not agree.
        """
        with self._lock:
            if self._reason is None:
                self._points += 1
                return
        self._settled.wait()
        if self._stop_at is None:
            raise RuntimeError(f"{self._reason}: the other ranks cannot be reached to agree on where to stop")
        if self._points >= self._stop_at:
            raise Stopped(self._reason)
        self._points += 1

    def close(self) -> None:
        """End the threads; all ranks have passed their last point."""
        self._closed.set()
        try:
            with self._asking_lock:
                self._asking.compare_set(self._asked(self._rank), "", _CLOSED)
                # Whoever was asked to stop after the last point waits for nobody.
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
                logger.info(f"{self._reason}: stops after this step")
                everywhere = self._waiting.multi_get([self._begun(rank) for rank in range(self._ranks)])
                self._waiting.set("stop_at", str(max(map(int, everywhere))))
            self._stop_at = int(self._wait_for("stop_at"))
        except RuntimeError as error:
            if not self._closed.is_set():
                logger.warning(f"The store of the process group is gone ({error}): signals can stop nothing any more")
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
            except dist.DistStoreError:  # a day has passed
                continue

    def _look(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            if self._file.exists():
                self._file.unlink(missing_ok=True)
                with contextlib.suppress(RuntimeError):  # the other thread says that the store is gone
                    self.ask(f"The file {self._file}")
                return

    @staticmethod
    def _asked(rank: int) -> str:
        return f"asked/{rank}"

    @staticmethod
    def _begun(rank: int) -> str:
        return f"begun/{rank}"
