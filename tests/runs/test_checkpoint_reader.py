"""Reading checkpoints that may come from somebody else. Nothing in them runs, and nothing leads out of their folder."""

import contextlib
import dataclasses
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_errors import reading_checkpoint
from exact_titan.runs.checkpoint_reader import load_checkpoint, read_metadata
from exact_titan.runs.run_folder import load_tensors, stored_names
from exact_titan.runs.safe_pickle import MetadataError, parse_metadata
from tests.checkpoints import Evil


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    """The files of a checkpoint with a tensor and with every kind of plain value."""
    folder = tmp_path_factory.mktemp("saved")
    state = {
        "weight": torch.arange(20.0).view(4, 5),
        "bits": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2),
    }
    plain = {"step": 7, "betas": (0.9, 0.95), "lr": 1e-3, "name": "é", "none": None, "on": True, "bytes": b"\0\1"}
    dcp.save({**state, "plain": plain}, checkpoint_id=folder, no_dist=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def checkpoint(tmp_path, saved) -> Path:
    folder = tmp_path / "step-3"
    folder.mkdir()
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    return folder


def empty() -> dict:
    """Return a state of the checkpoint's names, without its values."""
    plain = dict.fromkeys(("step", "betas", "lr", "name", "none", "on", "bytes"))
    return {
        "weight": torch.zeros(4, 5),
        "bits": torch.zeros(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(0),
        "plain": plain,
    }


def stock(checkpoint: Path) -> Metadata:
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def content(metadata: Metadata) -> tuple[dict, dict]:
    """Return what a reader uses. torch 2.15 stores one property of a tensor more than torch 2.13."""
    values = {
        name: (value.properties.dtype, value.size, value.chunks) if isinstance(value, TensorStorageMetadata) else None
        for name, value in metadata.state_dict_metadata.items()
    }
    return values, metadata.storage_data


def change(checkpoint: Path, name: str, **values: object) -> None:
    """Change where a value is stored, in ``.metadata``."""
    metadata = stock(checkpoint)
    index = next(one for one in metadata.storage_data if one.fqn == name)
    metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **values)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Store other bytes for a value of the checkpoint."""
    file = checkpoint / "__0_0.distcp"
    change(checkpoint, name, offset=file.stat().st_size, length=len(content))
    with file.open("ab") as out:
        out.write(content)


def saved_bytes(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def test_the_reader_reads_what_pytorch_reads(checkpoint):
    ours, theirs = empty(), empty()
    load_checkpoint(ours, checkpoint, no_dist=True)
    dcp.load(theirs, checkpoint_id=checkpoint, no_dist=True)
    assert ours["plain"] == theirs["plain"]
    assert ours["plain"]["step"] == 7
    for name in ("weight", "bits", "scalar"):
        assert torch.equal(ours[name], theirs[name])
    assert content(read_metadata(checkpoint)) == content(stock(checkpoint))


def test_the_metadata_of_many_ranks_are_those_of_pytorch(tmp_path, saved):
    metadata = pickle.loads(saved[".metadata"])
    tensor = metadata.state_dict_metadata["weight"]
    chunk = tensor.chunks[0]
    halves = [dataclasses.replace(chunk, offsets=torch.Size([row, 0]), sizes=torch.Size([2, 5])) for row in (0, 2)]
    metadata.state_dict_metadata["weight"] = dataclasses.replace(tensor, chunks=halves)
    info = metadata.storage_data.pop(MetadataIndex("weight", [0, 0]))
    for rank, half in enumerate(halves):
        where = dataclasses.replace(info, relative_path=f"__{rank}_0.distcp")
        metadata.storage_data[MetadataIndex("weight", half.offsets, rank)] = where
    file = tmp_path / ".metadata"
    file.write_bytes(pickle.dumps(metadata))
    assert content(parse_metadata(file)) == content(metadata)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("place", ["root", "value", "key"])
def test_no_code_of_the_metadata_runs(checkpoint, tmp_path, protocol, place):
    evil, metadata = Evil(tmp_path / "ran"), stock(checkpoint)
    root = {"root": evil, "value": metadata, "key": {evil: 1}}[place]
    if place == "value":
        metadata.planner_data = evil
    (checkpoint / ".metadata").write_bytes(pickle.dumps(root, protocol))
    with pytest.raises(InputError, match=r"\.metadata cannot be read \(it (names|is damaged)"):
        stored_names(checkpoint)
    with pytest.raises(MetadataError):
        load_checkpoint(empty(), checkpoint, no_dist=True)
    assert not evil.mark.exists()


@pytest.mark.parametrize(
    "code",
    {
        "the state of a class": b"\x80\x04\x8c\x29torch.distributed.checkpoint.metadata"
        b"\x8c\x08Metadata\x93N}\x8c\x01aK\x01s\x86b.",
        "a method of a name": b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93)R.",
        "a module of torch": b"\x80\x04\x8c\x05torch\x8c\x04onnx\x93.",
        "a call of a data type": b"\x80\x04\x8c\x05torch\x8c\x07float32\x93)R.",
        "an extension": b"\x80\x04\x82\x01.",
        "memory of 64 GiB": b"\x80\x04Nr\xff\xff\xff\xff.",
        "a text of 2^60 bytes": b"\x80\x04\x8d\0\0\0\0\0\0\0\x10.",
        "bytes of 2^60 bytes": b"\x80\x05\x96\0\0\0\0\0\0\0\x10.",
        "a frame of 2^60 bytes": b"\x80\x04\x95\0\0\0\0\0\0\0\x10N.",
        "a key of many nested tuples": b"\x80\x04})" + b"\x85" * 200_000 + b"Ns.",
        "many nested lists": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "nothing": b"",
        "text": b"-----BEGIN OPENSSH PRIVATE KEY-----",
    }.items(),
    ids=lambda code: code[0],
)
def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path, code):
    (tmp_path / ".metadata").write_bytes(code[1])
    with pytest.raises(MetadataError) as refused:
        parse_metadata(tmp_path / ".metadata")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert not hasattr(Metadata, "a")


@pytest.mark.parametrize("name", ["../__0_0.distcp", "/etc/passwd", "sub/__0_0.distcp", "..", ".", "", "a\0b"])
def test_a_name_that_is_not_a_file_of_the_folder_is_refused(checkpoint, name):
    change(checkpoint, "weight", relative_path=name)
    with pytest.raises(InputError, match="not a file of the checkpoint"):
        stored_names(checkpoint)


def test_a_link_out_of_the_folder_is_refused(checkpoint, tmp_path):
    file = checkpoint / "__0_0.distcp"
    file.rename(tmp_path / "private")
    file.symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=r"__0_0.distcp is a link to a file outside of the folder"):
        stored_names(checkpoint)
    with pytest.raises(MetadataError):
        load_checkpoint(empty(), checkpoint, no_dist=True)


@pytest.mark.parametrize(
    "values", [{"offset": -1}, {"length": 2**62}, {"offset": 2**63}, {"length": True}, {"offset": 1.5}]
)
def test_a_place_outside_of_the_file_is_refused(checkpoint, values):
    change(checkpoint, "weight", **values)
    with pytest.raises(InputError, match=r"\.metadata cannot be read"):
        stored_names(checkpoint)


def test_a_stored_form_that_transforms_the_bytes_is_refused(checkpoint):
    change(checkpoint, "weight", transform_descriptors=("stream.zstd",))
    with pytest.raises(InputError, match="another form than plain bytes"):
        stored_names(checkpoint)


@pytest.mark.parametrize("size", [(2**40, 5), (4, 2**62), (-4, 5), (4,), (1,) * 65])
def test_a_tensor_larger_than_its_file_is_refused(checkpoint, size):
    metadata = stock(checkpoint)
    tensor = metadata.state_dict_metadata["weight"]
    tensor.size = torch.Size(size)
    tensor.chunks[0].sizes = torch.Size(size)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"\.metadata cannot be read"):
        stored_names(checkpoint)


def test_a_tensor_with_a_missing_chunk_is_refused(checkpoint):
    metadata = stock(checkpoint)
    metadata.state_dict_metadata["weight"].chunks[0].sizes = torch.Size([3, 5])
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match="the chunks of its tensor weight are not the whole tensor"):
        stored_names(checkpoint)


def test_a_list_of_chunks_that_is_named_many_times_costs_nothing(checkpoint):
    metadata = stock(checkpoint)
    tensor = metadata.state_dict_metadata["weight"]
    tensor.chunks *= 5_000
    for number in range(5_000):
        metadata.state_dict_metadata[f"weight{number}"] = tensor
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"\.metadata cannot be read"):
        stored_names(checkpoint)


@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy"])
def test_no_code_of_a_stored_value_runs(checkpoint, tmp_path, kind):
    evil, out = Evil(tmp_path / "ran"), io.BytesIO()
    if kind == "pickle":
        pickle.dump(evil, out)
    else:
        torch.save(evil, out, _use_new_zipfile_serialization=kind == "torch")
    put(checkpoint, "plain.step", out.getvalue())
    with pytest.raises(InputError) as refused, reading_checkpoint(checkpoint):
        load_checkpoint(empty(), checkpoint, no_dist=True)
    assert not evil.mark.exists()
    assert "weights_only" not in str(refused.value)


def test_a_tensor_that_is_something_else_is_refused(checkpoint, tmp_path):
    evil = Evil(tmp_path / "ran")
    put(checkpoint, "weight", saved_bytes(evil))
    with pytest.raises(InputError, match="cannot be read"):
        load_tensors(checkpoint, {"weight": torch.zeros(4, 5)})
    assert not evil.mark.exists()


def test_a_compressed_value_is_refused(checkpoint):
    plain, packed = io.BytesIO(saved_bytes(torch.zeros(4, 250_000))), io.BytesIO()
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    put(checkpoint, "plain.step", packed.getvalue())
    with pytest.raises(InputError, match="is compressed"), reading_checkpoint(checkpoint):
        load_checkpoint(empty(), checkpoint, no_dist=True)


def test_changed_bits_are_refused_or_change_nothing_else(checkpoint, saved):
    """Every change of the metadata ends in the same content, in other plain values, or in one reason."""
    rng, refused = random.Random(15), 0
    for _ in range(300):
        content = bytearray(saved[".metadata"])
        for _ in range(rng.choice((1, 1, 1, 4))):
            how, place = rng.randrange(4), rng.randrange(len(content))
            if how == 0:
                content[place] ^= 1 << rng.randrange(8)
            elif how == 1:
                content[place] = rng.randrange(256)
            elif how == 2:
                del content[place : place + rng.randrange(1, 40)]
            else:
                content[place:place] = content[(start := rng.randrange(len(content))) : start + rng.randrange(1, 40)]
        (checkpoint / ".metadata").write_bytes(content)
        try:
            read_metadata(checkpoint)
        except MetadataError:
            refused += 1
    assert refused > 200


def test_changed_bits_of_a_stored_value_are_one_error(checkpoint, saved):
    rng, name = random.Random(15), "__0_0.distcp"
    for _ in range(40):
        content = bytearray(saved[name])
        for _ in range(rng.choice((1, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (checkpoint / name).write_bytes(content)
        with contextlib.suppress(CheckpointException):
            load_checkpoint(empty(), checkpoint, no_dist=True)


def test_memory_is_no_reason_to_call_a_checkpoint_damaged(checkpoint, monkeypatch):
    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("exact_titan.runs.safe_pickle._Builder.metadata", short)
    with pytest.raises(InputError, match=r"there is too little memory to read .*\.metadata"):
        stored_names(checkpoint)


def test_a_metadata_that_is_a_folder_is_one_line(checkpoint):
    os.remove(checkpoint / ".metadata")
    (checkpoint / ".metadata").mkdir()
    with pytest.raises(InputError, match=r"\.metadata cannot be read"):
        stored_names(checkpoint)
