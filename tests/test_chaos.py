"""A run with random stops, kills, second starts and changes of the number of ranks ends like an uninterrupted run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from exact_titan.system import processes
from tests import warm_agent, warm_ranks
from tests.support import ROOT, background_torchrun
from tests.test_stopping import arguments
from tests.warm_ranks import Run

RUNNER = "tests.titan.traced_train"
ROUNDS, STEPS, BATCH = 18, 140, 4
TORCHRUN_KILLED = 7
"""The round under real torchrun. SIGKILL ends torchrun, and its workers save and end by themselves."""
SECOND_START = (5, 13)
"""Rounds in which a second start in the same folder is refused before the signal."""


def options(dataset, folder: Path) -> list[str]:
    argv = arguments(dataset, folder, "--training.global_batch_size", str(BATCH), "--training.steps", str(STEPS))
    argv += ["--optimizer.lr", "1e-3", "--lr_scheduler.decay_ratio", "0.9", "--debug.seed", "7"]
    argv += ["--loss.refresh_steps", "5", "--validator.enable", "--validator.freq", "7"]
    argv += ["--checkpoint.interval", "3", "--checkpoint.async_mode", "async", "--checkpoint.keep_latest_k", "2"]
    return [str(folder), *argv]


def steps_of(folder: Path) -> list[tuple[int, dict[int, set[int]], dict[int, str]]]:
    """Return for every launch, in order: its end time, the places of each step that all ranks finished, the losses."""
    launches: dict[str, list[Path]] = {}
    for file in folder.glob("*.jsonl"):
        launches.setdefault(file.stem.split("-")[0], []).append(file)
    found = []
    for files in launches.values():
        places: dict[int, list[set[int]]] = {}
        losses: dict[int, str] = {}
        for file in files:
            for line in file.read_text().splitlines():
                record = json.loads(line)
                places.setdefault(record["step"], []).append(set(record["places"]))
                losses |= {record["step"]: record["loss"]} if "loss" in record else {}
        whole = {step: set().union(*parts) for step, parts in places.items() if len(parts) == len(files)}
        found.append((min(file.stat().st_ctime_ns for file in files), whole, losses))
    return sorted(found, key=lambda launch: launch[0])


def wait_for_a_moment(run: Run, rng: random.Random, folder: Path) -> None:
    """Wait for a random moment of training, validation or a save."""
    what, within = rng.choice([("Staging the checkpoint", 0.15), ("Validating", 0.15), ("  loss ", 2.0)])
    log = folder / "out/logs/rank_0.log"
    earlier = log.stat().st_size if log.exists() else 0
    run.wait_until(lambda: log.exists() and what in log.read_bytes()[earlier:].decode(), what, timeout=200)
    time.sleep(rng.random() * within)


def disturb(run: warm_ranks.Launch, rng: random.Random, folder: Path) -> str:
    """Stop or kill the run at a random moment. Return the signal."""
    how = rng.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGHUP"])
    wait_for_a_moment(run, rng, folder)
    whom = rng.choice([run.pids, [rng.choice(run.pids)]])
    if how != "SIGKILL":
        for pid in whom:
            os.kill(pid, signal.Signals[how])
        assert set(run.end(200)) == {75}, run.output()
        assert (folder / "out/exit_code").read_text() == "75\n", run.output()
        return how
    if whom == run.pids:
        run.kill()
    else:
        # SIGTERM ends the other ranks, as under torchrun.
        os.kill(whom[0], signal.SIGKILL)
        assert -signal.SIGKILL in run.end(200)
    assert not (folder / "out/exit_code").exists()
    return how


def kill_torchrun(folder: Path, argv: list[str], rng: random.Random, cwd: Path) -> None:
    """Kill torchrun at a random moment. Its two workers save and end."""
    with background_torchrun(2, str(ROOT / "tests/titan/traced_train.py"), *argv, cwd=cwd) as run:
        wait_for_a_moment(run, rng, folder)
        workers = run.workers()
        run.agent.kill()
        run.agent.wait()
        end = time.monotonic() + 60
        while any(processes.started(worker) is not None for worker in workers):
            assert time.monotonic() < end, run.output()
            time.sleep(0.05)
    assert (folder / "out/exit_code").read_text() == "75\n", run.output()


def start_again(argv: list[str], cwd: Path) -> None:
    """Start a second run in the folder of a run that trains. The second run changes nothing."""
    done = warm_ranks.run(2, RUNNER, *argv, cwd=cwd)
    assert done.codes == [2, 2], done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "another start of a run works in this folder (process " in line


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_twenty_disturbed_launches_train_like_an_uninterrupted_run(dataset, tmp_path, seed):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    done = warm_ranks.run(1, RUNNER, *options(dataset, unbroken), cwd=tmp_path)
    assert done.codes == [0], done.stdout[-2000:] + done.stderr[-2000:]

    rng = random.Random(seed)
    told = []
    for number in range(ROUNDS):
        if number == TORCHRUN_KILLED:
            kill_torchrun(broken, options(dataset, broken), rng, tmp_path)
            continue
        ranks = rng.choices([1, 2, 4], weights=[5, 4, 1])[0] if number not in (3, 11) else 4
        with warm_ranks.background(ranks, RUNNER, *options(dataset, broken), cwd=tmp_path) as run:
            if number in SECOND_START:
                run.wait_for("  loss ")
                start_again(options(dataset, broken), tmp_path)
            how = disturb(run, rng, broken)
            told.append(f"{number}: {ranks} ranks, {how}: {run.output().count('  loss ')} steps")
            print(told[-1], flush=True)
    # The last launch runs to the end, under torchrun.
    done = warm_agent.torchrun(2, str(ROOT / "tests/titan/traced_train.py"), *options(dataset, broken), cwd=tmp_path)
    assert done.codes == [0], done.stdout[-2000:] + done.stderr[-2000:]
    assert (broken / "out/exit_code").read_text() == "0\n"
    assert not (broken / "out/.lock").exists()

    (_, expected, expected_losses) = steps_of(unbroken)[0]
    assert sorted(expected) == list(range(1, STEPS + 1))
    launches = steps_of(broken)
    final_losses: dict[int, str] = {}
    seen: set[int] = set()
    for _, places, losses in launches:
        for step, windows in places.items():
            # Every launch trains exactly the windows of this step: no window is missing, no window comes twice.
            assert windows == expected[step] == set(range(BATCH * (step - 1), BATCH * step))
        if places:
            # The launch resumed at a finished and saved step, so no step is missing.
            assert min(places) <= len(seen) + 1
        seen |= places.keys()
        final_losses |= losses
    assert seen == expected.keys()
    assert json.loads((broken / "final.json").read_text()) == json.loads((unbroken / "final.json").read_text())
    apart = [abs(float.fromhex(final_losses[step]) / float.fromhex(loss) - 1) for step, loss in expected_losses.items()]
    print(f"losses differ by at most {max(apart):.1e}, the last by {apart[-1]:.1e}")
    assert max(apart) < 1e-5
