"""The checks and the snapshot of a run before its start in a batch system."""

import json
import tarfile
from pathlib import Path

import pytest

from exact_titan import snapshot
from exact_titan.runs.run_lock import lock_run
from tests.support import ROOT


def options(dataset, folder: Path, *more: str) -> list[str]:
    data = ["--dataloader.dataset_path", str(dataset.folder), "--training.seq_len", "64"]
    return ["--config", "from_scratch", "--dump_folder", f"{folder}/{{rule}}", *data, *more]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore ``WORLD_SIZE`` after each test. The snapshot sets ``WORLD_SIZE`` to the number of ranks."""
    monkeypatch.setenv("WORLD_SIZE", "1")


def test_a_start_saves_code_config_command_and_packages(dataset, tmp_path, capsys):
    given = options(dataset, tmp_path, "--training.global_batch_size", "6")
    assert snapshot.main(["--name", "12/start-1", "--ranks", "3", "--", *given]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/exact\n"
    folder = tmp_path / "exact/slurm/12/start-1"
    assert (folder / "command.txt").read_text().startswith("python -m exact_titan.train --config from_scratch --dump")
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["global_batch_size"] == 6
    assert config["loss"]["dataset_path"] == str(dataset.folder)
    assert "torchtitan==0.3.0\n" in (folder / "packages.txt").read_text()
    with tarfile.open(folder / "code.tar.gz") as code:
        assert code.extractfile("exact_titan/cli.py").read() == (ROOT / "exact_titan/cli.py").read_bytes()


def test_a_wrong_option_is_one_line_and_leaves_no_files(dataset, tmp_path, capsys):
    given = options(dataset, tmp_path, "--training.global_batch_size", "6")
    assert snapshot.main(["--name", "12/start-1", "--ranks", "4", "--", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("exact_titan.train: error: training.global_batch_size is 6: it must be a multiple of")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_in_the_folder_of_a_running_job_is_refused(dataset, tmp_path, capsys):
    with lock_run(tmp_path / "exact"):
        assert snapshot.main(["--name", "13/start-1", "--ranks", "1", "--", *options(dataset, tmp_path)]) == 2
        assert "another start of a run works in this folder (process " in capsys.readouterr().err
        assert [one.name for one in (tmp_path / "exact").iterdir()] == [".lock"]
