import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exact_titan.cli import main
from exact_titan.dataset import PackedDataset
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from tests.packing.conftest import Documents, contents


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_no_dataset(
    documents: Documents, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    documents.write("a", files=1, documents=3000, longest=100)
    documents.write("b", files=1, documents=300, longest=100)
    tokenizer = str(documents.folder / "tokenizer.json")
    command = ["--tokenizer", tokenizer, "--seq-len", "64", "--out", str(small_disk / "out")]
    assert main(["pack", str(documents.folder / "a"), *command]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"exact-titan: error: {small_disk}/.out.partial cannot be written: No space left on device")
    assert error.count("\n") == 1
    assert os.listdir(small_disk) == []
    with pytest.raises(InputError, match="no such folder"):
        PackedDataset(small_disk / "out")

    assert main(["pack", str(documents.folder / "b"), *command]) == 0
    before = contents(small_disk / "out")
    capfd.readouterr()
    assert main(["append", str(small_disk / "out"), str(documents.folder / "a")]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert contents(small_disk / "out") == before
    assert os.listdir(small_disk) == ["out"]
    assert list(verify(small_disk / "out"))
