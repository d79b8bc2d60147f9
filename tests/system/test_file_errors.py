import errno
import os
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.system.file_errors import as_input_errors, input_error, naming


def missing(place: Path) -> None:
    (place / "none").read_bytes()


def below_a_file(place: Path) -> None:
    (place / "file").touch()
    (place / "file/x").mkdir()


def long_name(place: Path) -> None:
    (place / ("n" * 300)).touch()


def loop(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    (place / "a").read_bytes()


def resolved_loop(place: Path) -> None:
    (place / "c").symlink_to("c")
    (place / "c").resolve(strict=False)
    (place / "c").read_bytes()  # Python 3.13 resolves a loop without an error


def folder_for_file(place: Path) -> None:
    place.read_bytes()


def renamed_onto_a_full_folder(place: Path) -> None:
    (place / "new").mkdir()
    (place / "old/x").mkdir(parents=True)
    (place / "new").rename(place / "old")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (missing, "{place}/none: No such file or directory: correct the path"),
        (below_a_file, "{place}/file/x: Not a directory: a file stands where the path needs a folder"),
        (long_name, "File name too long: choose a shorter name"),
        (loop, "{place}/a: Too many levels of symbolic links: the links form a loop"),
        (resolved_loop, "the links form a loop: correct the links"),
        (folder_for_file, "{place}: Is a directory: a folder stands where a file belongs"),
        (renamed_onto_a_full_folder, "{place}/old: Directory not empty: choose another path"),
    ],
)
def test_an_error_about_a_file_is_one_line(tmp_path: Path, act, message: str) -> None:
    with pytest.raises(InputError) as caught, as_input_errors():
        act(tmp_path)
    assert message.format(place=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_with_and_without_the_name_of_the_file(tmp_path: Path) -> None:
    def write() -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(InputError, match=r"^No space left on device: make room on the disk"), as_input_errors():
        write()
    with pytest.raises(InputError, match=r"^shard: No space left on device: "), as_input_errors(), naming("shard"):
        write()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TimeoutError("timed out"),
        OSError("a text without a number"),
        OSError(errno.EBADF, "Bad file descriptor", 7),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_error_that_is_not_about_a_file_stays(error: OSError) -> None:
    assert input_error(error) is None
    with pytest.raises(type(error)) as caught, as_input_errors():
        raise error
    assert caught.value is error


def test_a_name_of_bytes_is_readable() -> None:
    error = OSError(errno.EACCES, os.strerror(errno.EACCES), b"n\xff")
    assert str(input_error(error)).startswith("n\udcff: Permission denied: change the permissions")
