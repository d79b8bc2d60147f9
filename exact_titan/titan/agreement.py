"""The agreement of all ranks before the process group exists: all checks passed everywhere, and all read the same data.

Ranks on several machines may see other files. A rank that ended alone would leave the others in the rendezvous until
its time-out, and without a word. The ranks therefore agree over the store of the rendezvous (TCP, on the host):

1. Every rank does its checks and posts the result (:meth:`Agreement.check`).
2. Every rank waits for the results of all ranks.
3. If a rank has a complaint, all ranks raise the complaint of the lowest such rank. Rank 0 prints the complaint.

A rank that fails later, on its own, speaks itself (:meth:`Agreement.report`).
"""

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from exact_titan.errors import InputError, print_error
from exact_titan.system.file_errors import as_input_errors

T = TypeVar("T")

_SLOWEST_RANK = timedelta(minutes=10)
"""A rank imports torch and checks its run within this time of the first rank."""

_RANK_0_SPEAKS = timedelta(seconds=2)
"""Time that a failing rank gives rank 0 to report the same failure."""


class Agreement:
    """The ranks of a run before and beside their process group.

    Args:
        store: store of the rendezvous. None: a run of one process.
        rank: this rank.
        ranks: number of ranks.
    """

    def __init__(self, store: dist.Store | None, rank: int, ranks: int) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks
        self.is_disputed = False
        """Whether a check has failed on some ranks and passed on the others."""

    @classmethod
    def of_environment(cls) -> "Agreement":
        """Join the rendezvous that torchrun's environment variables name."""
        if int(os.environ["WORLD_SIZE"]) == 1:
            return cls(None, 0, 1)
        store, rank, ranks = next(dist.rendezvous("env://", timeout=_SLOWEST_RANK))
        # torchrun keeps its store over a restart of the workers.
        return cls(
            dist.PrefixStore(f"exact_titan/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store), rank, ranks
        )

    def check(self, name: str, check: Callable[[], T]) -> T:
        """Return the result of this rank's check after the checks of all ranks have passed. Every rank calls this.

        Args:
            name: name of the check, used once per run.
            check: raises :class:`InputError`, or an OSError about a file, if this rank has a complaint.

        Raises:
            InputError: on all ranks, if a rank has a complaint. If only some ranks have the complaint, the message
                starts with the rank and its machine.
        """
        if self._store is None:
            with as_input_errors():
                return check()
        store, mine = dist.PrefixStore(name, self._store), None
        try:
            with as_input_errors():
                result = check()
        except InputError as error:
            mine = error
            store.set(f"complaint/{self._rank}", json.dumps([socket.gethostname(), str(error)]))
            store.add("complaints", 1)
        if store.add("done", 1) == self._ranks:
            store.set("all", "")
        store.wait(["all"], _SLOWEST_RANK)
        complaints = store.add("complaints", 0)
        if not complaints:
            return result
        first = next(rank for rank in range(self._ranks) if store.check([f"complaint/{rank}"]))
        host, text = json.loads(store.get(f"complaint/{first}"))
        if complaints == self._ranks:
            raise InputError(text) from mine
        self.is_disputed = True
        others = f" and {complaints - 1} more" if complaints > 1 else ""
        raise InputError(f"rank {first} on {host}{others}: {text}") from mine

    def on_rank_0(self, name: str, function: Callable[[], object]) -> None:
        """Call a function on rank 0 alone. The other ranks wait for its end. Every rank calls this method.

        Args:
            name: name of the call, used once per run.
            function: raises :class:`InputError` if rank 0 has a complaint.

        Raises:
            InputError: on all ranks, with the complaint of rank 0.
        """
        if self._rank == 0:
            try:
                function()
            except InputError as error:
                if self._store is not None:
                    self._store.set(name, str(error))
                raise
            if self._store is not None:
                self._store.set(name, "")
        elif self._store is not None:
            self._store.wait([name], _SLOWEST_RANK)
            if complaint := self._store.get(name).decode():
                raise InputError(complaint)

    def same(self, name: str, values: dict[str, Any]) -> None:
        """Check that every rank has the same values as rank 0. Every rank calls this method.

        Args:
            name: name of the check, used once per run.
            values: JSON values by a text that names the value for a reader.

        Raises:
            InputError: on all ranks. The message names the first rank with other values, its machine, and both values.
        """
        if self._store is None:
            return
        if self._rank == 0:
            self._store.set(f"{name}/rank 0", json.dumps([socket.gethostname(), values]))
        host, first = json.loads(self._store.get(f"{name}/rank 0"))

        def compare() -> None:
            for what, value in json.loads(json.dumps(values)).items():
                if value != first[what]:
                    raise InputError(
                        f"{what} differs from rank 0 on {host}: {value}, not {first[what]}: copy the same files to "
                        f"every machine"
                    )

        self.check(name, compare)

    def report(self, error: InputError) -> None:
        """Print a complaint once.

        Rank 0 prints. Another rank prints if rank 0 has reported nothing for 2 seconds: the failure is this rank's own,
        and rank 0 waits in a collective call.
        """
        if self._rank == 0:
            print_error("exact_titan.train", error)
        if self._store is None:
            return
        if self._rank == 0:
            self._store.set("reported", "")
            return
        try:
            self._store.wait(["reported"], _RANK_0_SPEAKS)
        except dist.DistStoreError:
            print_error("exact_titan.train", f"rank {self._rank} on {socket.gethostname()}: {error}")
        except dist.DistError:  # rank 0 has ended, and its store with it
            pass
