"""Checkpoints of real runs: a run loads only complete checkpoints, and removes none before a newer one is complete."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from exact_titan.config import load_config
from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_folders import find_checkpoints
from exact_titan.runs.checkpoint_manifest import why_incomplete
from exact_titan.runs.export import export
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.preflight import complete
from tests import warm_ranks
from tests.support import largest_file
from tests.titan.test_training import RUNNER, argv, losses, record


@pytest.fixture
def checkpoints(tmp_path) -> Iterator[Callable[..., ResumableCheckpoints]]:
    """A function that makes checkpoint managers of a small model in ``tmp_path/checkpoint``. The group has one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def make(**config) -> ResumableCheckpoints:
        return ResumableCheckpoints.Config(enable=True, interval=1, last_save_model_only=False, **config).build(
            dataloader=None,
            model_parts=[torch.nn.Linear(8, 8)],
            optimizers=None,
            lr_schedulers=None,
            states={},
            sd_adapter=None,
            base_folder=str(tmp_path),
        )

    yield make
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_save_now_is_complete_and_saves_a_step_once(checkpoints, tmp_path, mode):
    manager = checkpoints(async_mode=mode)
    assert manager.save(1)
    assert manager.save_now(1)
    assert why_incomplete(tmp_path / "checkpoint/step-1") is None
    written = (tmp_path / "checkpoint/step-1/files.json").stat().st_mtime_ns
    assert manager.save_now(1)
    assert (tmp_path / "checkpoint/step-1/files.json").stat().st_mtime_ns == written
    assert manager.save_now(2)
    assert list(find_checkpoints(tmp_path / "checkpoint").complete) == [1, 2]


def test_save_now_repeats_a_failed_asynchronous_save(checkpoints, tmp_path, caplog):
    manager = checkpoints(async_mode="async")
    (tmp_path / "checkpoint").write_text("in the way")
    assert manager.save(1)
    with pytest.raises(CheckpointException):
        manager.save_future.result()
    (tmp_path / "checkpoint").unlink()
    assert manager.save_now(1)
    assert "The checkpoint of step 1 cannot be saved" in caplog.text
    assert why_incomplete(tmp_path / "checkpoint/step-1") is None


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_periodic_save_that_the_disk_refuses_is_a_warning_and_the_last_save_an_error(
    checkpoints, tmp_path, caplog, mode
):
    folder = tmp_path / "checkpoint"
    manager = checkpoints(async_mode=mode)
    manager.save(1)
    manager.maybe_wait_for_saving()
    with largest_file(300):
        manager.save(2)
        manager.maybe_wait_for_saving()
    assert "The checkpoint of step 2 cannot be saved: " in caplog.text
    assert "File too large: raise the limit" in caplog.text
    assert "A resume starts from step 1" in caplog.text
    manager.save(3)
    manager.maybe_wait_for_saving()
    assert list(find_checkpoints(folder).complete) == [1, 3]
    for save in (lambda: manager.save(4, last_step=True), lambda: manager.save_now(5)):
        message = (
            r"the checkpoint of step [45] cannot be saved: .*File too large.*; the same command resumes from step 3"
        )
        with largest_file(300), pytest.raises(InputError, match=message):
            save()
    assert manager.save_now(5)
    manager.close()
    # The files of the failed saves are removed at once, because the next save needs the room.
    assert sorted(one.name for one in folder.iterdir()) == ["step-1", "step-3", "step-5"]


def test_a_bug_in_a_save_ends_the_run(checkpoints):
    class Broken:
        def write(self, folder: Path) -> None:
            raise RuntimeError("a bug")

    manager = checkpoints()
    manager.record = Broken()
    with pytest.raises(CheckpointException):
        manager.save(1)


def test_an_error_in_before_save_prevents_the_save(checkpoints, tmp_path):
    manager = checkpoints()
    manager.save(1)

    def object_() -> None:
        raise ValueError("no")

    manager.before_save = object_
    for save in (manager.save, manager.save_now):
        with pytest.raises(ValueError, match="no"):
            save(2)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-1"]


def test_a_checkpoint_records_its_validation(checkpoints):
    manager = checkpoints()
    manager.mark_validated(1)
    manager.save(2)
    manager.mark_validated(2)
    manager.mark_validated(3)
    manager.save_now(3)
    manager.save(4)
    assert [manager.is_validated(step) for step in (1, 2, 3, 4)] == [False, True, True, False]
    assert all(why_incomplete(Path(manager.folder) / f"step-{step}") is None for step in (2, 3, 4))


def test_a_complete_checkpoint_with_changed_bytes_is_refused_by_name(checkpoints, tmp_path):
    made = checkpoints()
    made.save(1)
    (file,) = (tmp_path / "checkpoint/step-1").glob("*.distcp")
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(InputError, match=r"step-1: the content of __0_0\.distcp is not the content of the save"):
        made.load()
    made.verify_on_load = False
    with pytest.raises(InputError, match=r"step-1 cannot be read \(.*\): copy it again, or resume"):
        made.load()


def test_a_new_checkpoint_is_kept_after_a_resume_from_an_earlier_step(checkpoints, tmp_path):
    manager = checkpoints(keep_latest_k=2)
    for step in (1, 6, 8, 2, 3):
        manager.save(step)
    manager.close()
    assert list(find_checkpoints(tmp_path / "checkpoint").complete) == [3, 6, 8]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["step-3", "step-6", "step-8"]


def test_an_incomplete_load_step_is_refused(checkpoints, tmp_path):
    manager = checkpoints()
    manager.save(1)
    (tmp_path / "checkpoint/step-1/files.json").unlink()
    with pytest.raises(InputError, match=r"checkpoint.load_step is 1, but .*step-1 is not complete: it has no files"):
        manager.load(step=1)


def options(dataset, folder: Path, *more: str, steps: int) -> list[str]:
    return argv(dataset, folder, "--checkpoint.enable", "--checkpoint.interval", "2", *more, steps=steps)


def test_a_run_skips_a_checkpoint_with_a_missing_or_truncated_file(dataset, tmp_path):
    first = {"name": "run", "trainer": "exact", "argv": options(dataset, tmp_path / "out", steps=4)}
    record(2, tmp_path, first)
    names = [path.name for path in sorted((tmp_path / "out/checkpoint/step-4").iterdir())]
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp", "files.json", "run.json"]
    specs, incomplete = (
        [{"name": "whole", "trainer": "exact", "argv": options(dataset, tmp_path / "whole", steps=5)}],
        {},
    )
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    for name in names:
        for how in ("removed", "truncated"):
            folder = shutil.copytree(tmp_path / "out", tmp_path / f"{name} {how}")
            file = folder / "checkpoint/step-4" / name
            if how == "removed":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            incomplete[f"{name} {how}"] = why_incomplete(file.parent)
            specs.append({"name": f"{name} {how}", "trainer": "exact", "argv": options(dataset, folder, steps=5)})
    (tmp_path / "spec.json").write_text(json.dumps(specs))
    done = warm_ranks.run(2, RUNNER, tmp_path / "spec.json", tmp_path / "out.json", cwd=tmp_path)
    assert done.codes == [0, 0], done.stdout[-3000:] + done.stderr[-3000:]
    output = done.stdout + done.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    assert [step["step"] for step in results["whole"]["steps"]] == [5]
    for name, why in incomplete.items():
        steps = results[name]["steps"]
        assert [step["step"] for step in steps] == [3, 4, 5]
        assert steps[-1] == results["whole"]["steps"][-1]
        folder = tmp_path / name / "checkpoint"
        assert output.count(f"{folder}/step-4 is not complete and is skipped: {why}") == 1
        assert output.count(f"The last complete checkpoint is {folder}/step-2") == 1
        # The new checkpoint of step 4 has replaced the incomplete checkpoint.
        assert list(find_checkpoints(folder).complete) == [2, 4, 5]
        assert not [path for path in folder.iterdir() if not path.name.startswith("step-")]


@pytest.mark.slow
def test_the_last_k_complete_checkpoints_are_kept_and_incomplete_ones_removed(dataset, tmp_path):
    specs = []
    for mode in ("disabled", "async"):
        saving = ["--checkpoint.async_mode", mode, "--checkpoint.keep_latest_k", "2"]
        for steps in (7, 9):
            arguments = options(dataset, tmp_path / mode, *saving, steps=steps)
            specs.append({"name": f"{mode} {steps}", "trainer": "exact", "argv": arguments})
    first = record(2, tmp_path, *specs[::2])
    for mode in ("disabled", "async"):
        folder = tmp_path / mode / "checkpoint"
        assert list(find_checkpoints(folder).complete) == [6, 7]
        assert sorted(path.name for path in folder.iterdir()) == ["step-6", "step-7"]
        # Two unfinished copies: the run repeats step 8 and does not reach step 100.
        for step in (8, 100):
            shutil.copytree(folder / "step-7", folder / f"step-{step}")
            (folder / f"step-{step}/files.json").unlink()
    second = record(2, tmp_path, *specs[1::2])
    for mode in ("disabled", "async"):
        folder = tmp_path / mode / "checkpoint"
        assert sorted(path.name for path in folder.iterdir()) == ["step-100", "step-8", "step-9"]
        assert why_incomplete(folder / "step-8") is None
        assert [step["step"] for step in second[f"{mode} 9"]["steps"]] == [8, 9]
    assert losses(second["async 9"]) == losses(second["disabled 9"])
    assert losses(first["async 7"]) == losses(first["disabled 7"])


@pytest.mark.slow
def test_export_and_the_next_stage_use_the_last_complete_checkpoint(dataset, tmp_path, caplog):
    record(1, tmp_path, {"name": "run", "trainer": "exact", "argv": options(dataset, tmp_path / "out", steps=4)})
    export(tmp_path / "out", tmp_path / "step-2", step=2, dtype="float32")
    export(tmp_path / "out", tmp_path / "step-4", dtype="float32")
    (tmp_path / "out/checkpoint/step-4/files.json").unlink()
    export(tmp_path / "out", tmp_path / "last", dtype="float32")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("step-2", "last", "step-4")]
    assert weights[0] == weights[1] != weights[2]
    assert f"{tmp_path}/out/checkpoint/step-4 is not complete and is skipped: it has no files.json" in caplog.text
    stage = argv(dataset, tmp_path / "next", "--checkpoint.enable", "--start_from", str(tmp_path / "out"), steps=1)
    assert complete(load_config(stage)).checkpoint.initial_load_path == f"{tmp_path}/out/checkpoint/step-2"
