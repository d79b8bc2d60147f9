"""The lock of a run's folder, and the exit code of a run whose folder fails for a moment."""

import os
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.runs import exit_codes
from exact_titan.runs.run_lock import check_no_run, has_files, lock_run


def test_a_second_start_is_told_what_to_do(tmp_path):
    run = tmp_path / "out"
    check_no_run(run)
    with lock_run(run):
        assert not has_files(run)
        for refuse in (lambda: lock_run(run).__enter__(), lambda: check_no_run(run)):
            with pytest.raises(InputError) as refused:
                refuse()
            text = str(refused.value)
            assert text.startswith(f"dump_folder is {run}: another start of a run works in this folder (process ")
            assert f"(process {os.getpid()} on {os.uname().nodename}, since " in text
            assert text.endswith(f"stop it with `touch {run}/stop`, or give another --dump_folder")
    assert not run.exists()


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(InputError, match="dump_folder is /dev/null/a: the folder cannot be written"):
        lock_run(Path("/dev/null/a"))


def test_the_exit_code_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exit_codes, "_TRY_AGAIN_SECONDS", 0.01)
    write, errors = exit_codes.write_atomically, iter([OSError(5, "Input/output error")] * 3)

    def flaky(file, data) -> None:
        if error := next(errors, None):
            raise error
        write(file, data)

    monkeypatch.setattr(exit_codes, "write_atomically", flaky)
    exit_codes.write_exit_code(tmp_path, 75)
    assert (tmp_path / "exit_code").read_text() == "75\n"
    assert capsys.readouterr().err == ""
    errors = iter([OSError(5, "Input/output error")] * 9)
    exit_codes.write_exit_code(tmp_path, 75)
    assert "exit_code cannot be written ([Errno 5] Input/output error): the exit code is 75" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "metrics.replaced.jsonl", ".lock", "logs/rank_0.log", "wandb_run_id"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_run_does_not_write_behind_the_links_of_its_folder(tmp_path, name, exists):
    mine, run = tmp_path / "mine", tmp_path / "run"
    if exists:
        mine.write_text("mine")
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(mine)
    with pytest.raises(InputError, match=f"{name} is a link to {mine}, which is outside of the dump_folder"):
        lock_run(run)
    assert mine.exists() == exists
    assert not exists or mine.read_text() == "mine"


def test_links_to_folders_and_inside_the_run_stay(tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    for one in (run, disk):
        one.mkdir()
    (run / "checkpoint").symlink_to(disk)
    (run / "newest").symlink_to("metrics.jsonl")
    with lock_run(run):
        pass
