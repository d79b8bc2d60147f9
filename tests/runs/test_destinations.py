import os
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.runs.destinations import check_new, check_writable


@pytest.mark.parametrize("folder", [".", "new", "new/deep/down"])
def test_a_folder_that_can_be_made_is_not_made(tmp_path, folder):
    check_writable(tmp_path / folder, "dump_folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/model", "file/a/b"])
def test_a_folder_below_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"dump_folder is .*: the folder cannot be written \(.*file is not a folder\)"):
        check_writable(tmp_path / below, "dump_folder")


@pytest.mark.parametrize("folder", ["/proc/model", "/dev/null/x", "/sys/kernel/a/b"])
def test_a_folder_where_nothing_can_be_made_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match=f"export is {folder}: the folder cannot be written"):
        check_writable(tmp_path / folder, "export")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300), "export")


def test_a_new_folder_is_not_a_file_or_a_broken_link(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name} exists already"):
            check_new(tmp_path / name, "export")
    check_new(tmp_path / "new", "export")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out is .*: the name is not UTF-8: choose another name"):
        check_writable(tmp_path / os.fsdecode(b"caf\xe9"), "--out")
    assert list(tmp_path.iterdir()) == []
