"""A run with random stops, kills and changes of the number of ranks ends like an uninterrupted run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests import warm_ranks
from tests.support import ROOT, torchrun
from tests.test_stopping import arguments

RUNNER = "tests.titan.traced_train"
ROUNDS, STEPS, BATCH = 20, 140, 4


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


def disturb(run: warm_ranks.Launch, rng: random.Random, folder: Path) -> str:
    """Stop or kill the run at a random moment of training, validation or a save. Return the signal."""
    how = rng.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1"])
    what, within = rng.choice([("Staging the checkpoint", 0.15), ("Validating", 0.15), ("  loss ", 2.0)])
    log = folder / "out/logs/rank_0.log"
    earlier = log.stat().st_size if log.exists() else 0
    run.wait_until(lambda: log.exists() and what in log.read_bytes()[earlier:].decode(), what, timeout=200)
    time.sleep(rng.random() * within)
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
        ranks = rng.choices([1, 2, 4], weights=[5, 4, 1])[0] if number not in (3, 11) else 4
        with warm_ranks.background(ranks, RUNNER, *options(dataset, broken), cwd=tmp_path) as run:
            how = disturb(run, rng, broken)
            told.append(f"{number}: {ranks} ranks, {how}: {run.output().count('  loss ')} steps")
            print(told[-1], flush=True)
    # The last launch runs to the end, under torchrun.
    done = torchrun(2, str(ROOT / "tests/titan/traced_train.py"), *options(dataset, broken), cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (broken / "out/exit_code").read_text() == "0\n"

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
