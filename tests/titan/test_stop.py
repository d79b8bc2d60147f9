"""The agreement of ranks on the step of a stop. Threads replace the ranks, over a real store."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from exact_titan.runs.exit_codes import ExitCode
from exact_titan.titan import stop
from exact_titan.titan.stop import StopAgreement, Stopped


@pytest.fixture
def agreements(tmp_path) -> Iterator[Callable[[int], list[StopAgreement]]]:
    """A function that makes the agreements of ``ranks`` ranks. The server of the store runs until the test ends."""
    servers = []

    def make(ranks: int) -> list[StopAgreement]:
        server = dist.TCPStore("localhost", 0, ranks, is_master=True, wait_for_workers=False)
        servers.append(server)
        store = dist.PrefixStore("stop", server)
        return [StopAgreement(tmp_path, store, rank=rank, ranks=ranks) for rank in range(ranks)]

    yield make
    servers.clear()


def walk(agreement: StopAgreement, points: int, rng: random.Random, ended: list, index: int, barrier=None) -> None:
    """Pass the points as a training run does. Record the reason of the end and the number of passed points."""
    passed = 0
    try:
        for _ in range(points):
            agreement.check()
            passed += 1
            # The barrier stands for the collectives of a training run.
            if barrier is not None and passed % 5 == 0:
                barrier.wait(10)
            time.sleep(rng.random() * 0.004)
        ended[index] = ("finished", passed)
    except Stopped as stopped:
        ended[index] = (stopped.reason, passed)
    agreement.close()


@pytest.mark.parametrize("seed", range(8))
def test_all_ranks_stop_at_the_same_point(agreements, seed):
    rng = random.Random(seed)
    ranks = rng.choice([1, 2, 3, 5])
    group = agreements(ranks)
    ended: list = [None] * ranks
    barrier = threading.Barrier(ranks)
    arguments = [(one, 60, random.Random(f"{seed}/{i}"), ended, i, barrier) for i, one in enumerate(group)]
    threads = [threading.Thread(target=walk, args=argument) for argument in arguments]
    for thread in threads:
        thread.start()
    time.sleep(rng.random() * 0.2)
    askers = rng.sample(range(ranks), rng.randint(1, ranks))
    for asker in askers:
        group[asker].ask("SIGTERM")
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(set(ended)) == 1
    assert ended[0] == ("finished", 60) or ended[0][0] == f"SIGTERM on rank {askers[0]}"


def test_a_stop_before_the_first_point_prevents_the_first_step(agreements):
    group = agreements(2)
    group[1].ask("SIGUSR1")
    time.sleep(0.3)
    for one in group:
        with pytest.raises(Stopped) as stopped:
            one.check()
        assert stopped.value.code == ExitCode.SAVED == 75
        assert stopped.value.reason == "SIGUSR1 on rank 1"
    for one in group:
        one.close()


def test_the_stop_file_asks_and_is_removed(agreements, tmp_path):
    group = agreements(2)
    (tmp_path / "stop").touch()
    ended: list = [None, None]
    for rank, one in enumerate(group):
        walk(one, 1000, random.Random(rank), ended, rank)
    assert ended[0] == ended[1]
    assert ended[0][0] == f"The file {tmp_path / 'stop'} on rank 0"
    assert not (tmp_path / "stop").exists()


def test_errors_of_the_file_system_do_not_end_the_search_for_the_stop_file(tmp_path, monkeypatch, caplog):
    errors = iter([PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), OSError(116, "Stale")])
    look = Path.stat

    def flaky(path: Path, **options):
        if path.name == "stop" and (error := next(errors, None)) is not None:
            raise error
        return look(path, **options)

    def stays(path: Path, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "stat", flaky)
    monkeypatch.setattr(Path, "unlink", stays)
    monkeypatch.setattr(stop, "_LOOK_SECONDS", 0.02)
    (tmp_path / "stop").touch()
    server = dist.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)
    agreement = StopAgreement(tmp_path, server, rank=0, ranks=1)
    ended: list = [None]
    walk(agreement, 1000, random.Random(0), ended, 0)
    assert ended[0][0] == f"The file {tmp_path / 'stop'} on rank 0"
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [text.partition(" (")[0] for text in warnings] == [
        f"{tmp_path / 'stop'} cannot be looked for",
        f"{tmp_path / 'stop'} cannot be removed",
    ]


def test_close_leaves_no_thread(agreements):
    before = threading.active_count()
    begin = time.monotonic()
    group = agreements(3)
    for one in group:
        one.check()
    for one in group:
        one.close()
    assert threading.active_count() == before
    assert time.monotonic() - begin < 5
