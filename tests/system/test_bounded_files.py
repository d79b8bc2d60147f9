"""Files of somebody else: no pipe or device, and bounded."""

import os
from pathlib import Path

import pytest

from exact_titan.system.bounded_files import read_bounded
from exact_titan.system.json_files import parse_json, read_json


def test_a_file_up_to_the_bound_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert read_bounded(file, 4) == b"1234"
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_bounded(file, 3)
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == 1234


def test_a_pipe_and_a_device_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(ValueError, match="a pipe or a device"):
            read_json(file)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(Path(tmp_path, "nothing"))


def test_half_of_a_surrogate_pair_is_no_text():
    assert parse_json(rb'["\ud83d\ude00", "\\ud800", "\udcff"]') == ["\U0001f600", r"\ud800", "\udcff"]
    for text in (rb'["\ud800"]', rb'{"\uDBFF": 1}'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            parse_json(text)
