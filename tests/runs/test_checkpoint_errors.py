"""The cause of an error during a load decides the message: the content, the system, the memory, or Ctrl-C."""

import builtins
import errno
import io
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_errors import reading_checkpoint
from exact_titan.runs.run_folder import load_tensors, stored_names
from tests.runs.test_checkpoint_manifest import save

_MACHINE = ["EACCES", "EPERM", "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "EAGAIN", "ENOTCONN"]
_BLAME = ("damaged", "incomplete", "not complete", "copy it again", "remove", "delete")


def failing(monkeypatch, name: str, error: BaseException) -> None:
    """Let every way to open a file of this name raise the error."""
    opened = io.open

    def fail(file, *arguments, **options):
        if not isinstance(file, int) and Path(file).name == name:
            raise error
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", fail)
    monkeypatch.setattr(builtins, "open", fail)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("cause", _MACHINE)
def test_an_error_of_the_system_does_not_blame_the_checkpoint(tmp_path, monkeypatch, name, cause):
    folder, number = save(tmp_path, 3), getattr(errno, cause)
    failing(monkeypatch, name, OSError(number, "the cause", str(folder / name)))
    with pytest.raises(InputError, match=r"step-3\S* cannot be read \(the cause\): repeat the command") as raised:
        load_tensors(folder, {"weight": torch.zeros(1000)})
    assert not any(word in str(raised.value) for word in _BLAME)


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError(), RuntimeError("std::bad_alloc")])
def test_a_lack_of_memory_does_not_blame_the_checkpoint(tmp_path, monkeypatch, error):
    folder = save(tmp_path, 3)
    failing(monkeypatch, "__0_0.distcp", error)
    with pytest.raises(InputError, match=r"there is too little memory to read \S*step-3 \(.+\): free memory") as raised:
        load_tensors(folder, {"weight": torch.zeros(1000)})
    assert not any(word in str(raised.value) for word in _BLAME)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_during_a_load_is_ctrl_c(tmp_path, monkeypatch, interruption):
    folder = save(tmp_path, 3)
    failing(monkeypatch, "__0_0.distcp", interruption(143))
    with pytest.raises(interruption):
        load_tensors(folder, {"weight": torch.zeros(1000)})
    wrapped = CheckpointException("", {0: _wrap_exception(ValueError()), 1: _wrap_exception(interruption())})
    with pytest.raises(interruption), reading_checkpoint(folder):
        raise wrapped


def test_ctrl_c_during_the_read_of_the_metadata_is_ctrl_c(tmp_path, monkeypatch):
    folder = save(tmp_path, 3)
    failing(monkeypatch, ".metadata", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stored_names(folder)


def test_wrong_content_is_named_as_such(tmp_path):
    folder = save(tmp_path, 3)
    file = folder / "__0_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    remedy = "copy it again, or resume from an earlier checkpoint with --checkpoint.load_step"
    with pytest.raises(InputError, match=rf"^{folder} cannot be read \(.*\): {remedy}$"), reading_checkpoint(folder):
        dcp.load({"weight": torch.zeros(1000), "step": 0}, checkpoint_id=folder, no_dist=True)
