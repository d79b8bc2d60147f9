"""This version opens, trains and extends the packed datasets and the runs of older versions.

Before format 4, version ce639ba made ``fixtures/old_formats.tar.gz``: ``first`` (format 1), ``documents`` (format 2, of
the folder ``corpus``) and ``instructions`` (format 3), and the sources ``more`` and ``rows2.jsonl`` to append.
``expected.json`` has the fingerprints, and the fingerprints and formats after ``append`` by the same version.

Commit 4f33dcf made ``fixtures/before_rooms.tar.gz`` with torch 2.13.0 and two ranks: ``packed`` (30 documents of
``tests.support.pack_lengths``, windows of 64), ``run`` (the checkpoint of step 4, ``model/``) and ``expected.json``
(the results of the uninterrupted run of 8 steps).
"""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import append
from exact_titan.runs.metrics_log import read_validations
from exact_titan.runs.run_record import read_record
from exact_titan.sampling.balance import attention_work
from tests.titan.test_training import losses, record

FIXTURE = Path(__file__).parent / "fixtures/before_rooms.tar.gz"
OLD_FORMATS = Path(__file__).parent / "fixtures/old_formats.tar.gz"
SIZES = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 16}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "before_rooms"


def test_an_old_dataset_has_the_same_windows(old):
    expected = json.loads((old / "expected.json").read_text())
    dataset = PackedDataset(old / "packed")
    assert dataset.manifest.fingerprint == expected["fingerprint"]
    found = []
    for k in range(len(dataset)):
        tensors = (dataset[k][name].numpy().tobytes() for name in ("input", "labels", "positions", "cu_seqlens"))
        found.append(hashlib.sha256(b"".join(tensors)).hexdigest())
    assert found == expected["window_sha256"]
    assert len(list(verify(old / "packed"))) == 6


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    with tarfile.open(OLD_FORMATS) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "more", "version"), [("first", "more", 1), ("documents", "more", 2), ("instructions", "rows2.jsonl", 3)]
)
def test_a_dataset_of_an_older_format_keeps_its_fingerprint_and_its_format(formats, name, more, version):
    expected = json.loads((formats / "expected.json").read_text())[name]
    folder = formats / name
    manifest = Manifest.read(folder)
    assert (manifest.format_version, manifest.fingerprint) == (version, expected["fingerprint"])
    windows = [PackedDataset(folder)[k]["input"].tolist() for k in range(len(PackedDataset(folder)))]
    assert PackedDataset(folder).work is None
    list(verify(folder))
    append(folder, [formats / more])
    grown = Manifest.read(folder)
    assert (grown.format_version, grown.fingerprint) == (expected["appended_format"], expected["appended"])
    assert [PackedDataset(folder)[k]["input"].tolist() for k in range(len(windows))] == windows
    larger = PackedDataset(folder)
    assert larger.work is not None
    assert larger.work[np.arange(len(larger))].tolist() == [attention_work(larger, k) for k in range(len(larger))]
    list(verify(folder))


def test_append_knows_the_files_of_an_older_dataset(formats):
    # A dataset without digests of the files of a folder: the digest of the folder has the names of the files.
    with pytest.raises(InputError, match=r"first holds source corpus already \(as corpus\): leave it out"):
        append(formats / "first", [formats / "corpus"])
    with pytest.raises(InputError, match=r"documents holds source renamed already \(as corpus\): leave it out"):
        append(formats / "documents", [(formats / "corpus").rename(formats / "renamed")])


def test_an_old_checkpoint_is_resumed(old, tmp_path):
    expected = json.loads((old / "expected.json").read_text())
    argv = [
        *["--config", "from_scratch", "--dump_folder", str(old / "run")],
        *["--dataloader.dataset_path", str(old / "packed"), "--training.seq_len", "64", "--training.steps", "8"],
        *["--debug.seed", "7", "--training.mixed_precision_param", "float32", "--training.global_batch_size", "4"],
        *["--optimizer.lr", "1e-2", "--lr_scheduler.warmup_steps", "2", "--metrics.log_freq", "1"],
        *["--metrics.no-enable-tensorboard", "--validator.freq", "4", "--loss.refresh_steps", "3"],
        *["--checkpoint.interval", "4", "--checkpoint.async_mode", "disabled"],
        *["--validator.steps", "1"],
        *[text for name, size in SIZES.items() for text in (f"--architecture.{name}", str(size))],
    ]
    resumed = record(2, tmp_path, {"name": "run", "trainer": "exact", "argv": argv})["run"]
    assert [step["step"] for step in resumed["steps"]] == [5, 6, 7, 8]
    for step, one, other in zip((5, 6, 7, 8), losses(resumed), losses(expected)[4:], strict=True):
        # The weights are refreshed after step 6. Since the checkpoint, the counts of the dataset became their prior.
        assert one == pytest.approx(other, rel=1e-5 if step <= 6 else 1e-3)
    for key in ("counts", "windows"):
        assert resumed[key] == expected[key]
    # The 18 training windows and the 3 validation windows keep the order of version 1.
    resumed_record = read_record(old / "run")
    assert resumed_record is not None
    assert resumed_record.validation is not None
    assert (resumed_record.data["order_version"], resumed_record.validation["order_version"]) == (1, 1)
    validations = read_validations(old / "run")
    assert {one["windows"]["fingerprint"] for one in validations} == {expected["fingerprint"]}
    refreshed, without_prior = ([float.fromhex(text) for text in run["weights"]] for run in (resumed, expected))
    assert refreshed == pytest.approx(without_prior, rel=1e-3)


def test_an_old_run_is_exported(old, tmp_path, capsys):
    assert main(["export", str(old / "run"), "--out", str(tmp_path / "exported"), "--dtype", "float32"]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "exported").iterdir()}
