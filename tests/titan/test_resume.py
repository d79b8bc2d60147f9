"""A run resumes on any number of ranks, but only with the data, order and step size of its checkpoint."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.titan.resume import find_resume
from tests import warm_ranks
from tests.support import pack_lengths
from tests.titan.test_training import argv, losses, record


def options(dataset, folder: Path, *more: str, steps: int = 12) -> list[str]:
    """Return options for refreshed weights, a falling learning rate, logs at steps 1, 4, 8, 12, and saves at 6, 12."""
    saved = ["--checkpoint.enable", "--checkpoint.interval", "6", "--loss.refresh_steps", "4"]
    schedule = ["--lr_scheduler.decay_ratio", "0.8", "--metrics.log_freq", "4"]
    return argv(dataset, folder, *saved, *schedule, *more, steps=steps)


def run(nproc: int, folder: Path, arguments: list[str], **spec) -> dict:
    return record(nproc, folder, {"name": "run", "trainer": "exact", "argv": arguments, **spec})["run"]


def refusal(folder: Path, arguments: list[str]) -> str:
    done = warm_ranks.run(1, "exact_titan.train", *arguments, cwd=folder)
    assert done.codes == [2]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("exact_titan.train: error: ")]
    return line


def test_a_run_resumes_on_any_number_of_ranks(dataset, tmp_path):
    """The run stops inside a log interval and inside a refresh interval."""
    unbroken = run(2, tmp_path, options(dataset, tmp_path / "unbroken"))
    first = run(2, tmp_path, options(dataset, tmp_path / "broken", steps=12), end_after=6)
    assert first["windows"] == 6 * 4
    for nproc in (1, 2, 4):
        shutil.copytree(tmp_path / "broken", tmp_path / str(nproc))
        resumed = run(nproc, tmp_path, options(dataset, tmp_path / str(nproc)))
        assert [step["step"] for step in resumed["steps"]] == [8, 12]
        for key in ("weights", "windows", "counts"):
            assert resumed[key] == unbroken[key]
        for one, other in zip(losses(resumed), losses(unbroken)[-2:], strict=True):
            assert one == (other if nproc == 2 else pytest.approx(other, rel=1e-4))
        for step in ("8", "12"):
            metrics, expected = resumed["metrics"][step], unbroken["metrics"][step]
            for name in ("learning_rates", "tokens_seen"):
                assert metrics[name] == expected[name]
            for name in ("cross_entropy", "tail_loss_mass", "weights"):
                assert metrics[name] == pytest.approx(expected[name], rel=1e-4)
            assert len(expected["buckets"]) == len(dataset.buckets)
            for label, bucket in expected["buckets"].items():
                assert metrics["buckets"][label]["targets"] == bucket["targets"] > 0
                assert metrics["buckets"][label] == pytest.approx(bucket, rel=1e-4)
    rates = [unbroken["metrics"][step]["learning_rates"]["AdamW"] for step in ("8", "12")]
    assert rates[1] < rates[0] < 1e-2
    assert unbroken["metrics"]["12"]["tokens_seen"] == 12 * 4 * dataset.window


@pytest.mark.slow
def test_another_dataset_seed_batch_or_window_is_refused_unless_allowed_by_name(dataset, tmp_path):
    other = pack_lengths(tmp_path / "other", [100] * 30, seq_len=128, seed=3)
    first = run(1, tmp_path, options(dataset, tmp_path / "out", steps=12), end_after=6)
    changed = [
        *["--dataloader.dataset_path", str(other.folder), "--training.seq_len", "128", "--dataloader.seed", "5"],
        *["--training.global_batch_size", "8", "--architecture.rope_theta", "10000"],
    ]
    line = refusal(tmp_path, options(dataset, tmp_path / "out", *changed))
    for part in ("fingerprint", "seed 0, not 5", "global_batch_size 4, not 8", "seq_len 64, not 128"):
        assert part in line
    assert (tmp_path / "out/exit_code").read_text() == "2\n"
    names = "dataset,seed,global_batch_size,seq_len"
    assert line.endswith(f"or allow the change with --dataloader.allow_changed {names}")
    allowed = [*changed, "--dataloader.allow_changed", names]
    resumed = run(1, tmp_path, options(dataset, tmp_path / "out", *allowed))
    # Steps 7 to 12 read the new dataset from its first window, with the weights of the new dataset.
    assert first["windows"] == 6 * 4
    assert resumed["windows"] == 6 * 8
    assert len(resumed["weights"]) == len(other.buckets) != len(dataset.buckets)
    # The run may resume from its own new checkpoint without allow_changed.
    again = run(1, tmp_path, options(dataset, tmp_path / "out", *changed, steps=14))
    assert again["windows"] == 8 * 8


@pytest.mark.slow
def test_the_last_step_is_saved_when_the_dataset_ends_early(dataset, tmp_path):
    """The same command again trains no step."""
    once = options(dataset, tmp_path / "out", "--dataloader.no-infinite", "--checkpoint.interval", "1000", steps=1000)
    steps = len(dataset) // 4
    for _ in range(2):
        run(1, tmp_path, once)
        assert [path.name for path in (tmp_path / "out/checkpoint").iterdir()] == [f"step-{steps}"]


def test_a_load_step_without_a_complete_checkpoint_is_refused(tmp_path):
    config = load_config(["--config", "from_scratch", "--dump_folder", str(tmp_path), "--checkpoint.load_step", "7"])
    with pytest.raises(InputError, match=r"checkpoint.load_step is 7, but there is no folder"):
        find_resume(config)
    (tmp_path / "checkpoint/step-7").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint.load_step is 7, but .*step-7 is not complete: it has no files"):
        find_resume(config)


def test_a_run_without_a_complete_checkpoint_does_not_start_at_step_1(tmp_path, monkeypatch):
    config = load_config(["--config", "from_scratch", "--dump_folder", str(tmp_path)])
    over = load_config(["--config", "from_scratch", "--dump_folder", str(tmp_path), "--checkpoint.start_over"])
    assert find_resume(config) is None
    for name in (".unfinished-step-1", "set-aside-step-1"):  # an interrupted first save is no checkpoint
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
    assert find_resume(config) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint/step-{step}").mkdir()
    reasons = (
        r"none is complete \(step-10: it has no files.json, .*; step-2: it has no .*\): .* --checkpoint.start_over"
    )
    with pytest.raises(InputError, match=reasons):
        find_resume(config)
    assert find_resume(over) is None
    stat = Path.stat

    def refuse(path: Path, **how: bool) -> os.stat_result:
        if path.parent.name == "step-2":
            raise OSError(errno.ETIMEDOUT, "Connection timed out", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", refuse)
    for one in (config, over):
        with pytest.raises(InputError, match=r"step-2 cannot be read \(.*Connection timed out\): repeat the command"):
            find_resume(one)
