"""A packed dataset of another person: its fingerprint fits, and its numbers and names lie. Every lie is one line."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exact_titan.cli import main
from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.dataset import reading_window
from exact_titan.dataset.lengths import read_lengths
from exact_titan.dataset.manifest import _fingerprint
from exact_titan.dataset.shards import Shard, write_shard
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import pack

pytest_plugins = ["tests.text_fixtures"]

SHARD = "train-00000.safetensors"
COMMANDS = (
    ["inspect", "packed"],
    ["inspect", "packed", "--compare"],
    ["inspect", "packed", "--rules", "packed_position"],
    ["verify", "packed"],
    ["window", "packed", "1"],
    ["append", "packed", "documents.jsonl"],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Path) -> Path:
    """A folder with ``packed``: windows of 16 in two splits, two buckets, and documents that are cut."""
    folder = tmp_path_factory.mktemp("good")
    rows = [{"text": " ".join(map(str, range(first, first + 11)))} for first in range(1, 242, 11)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack([folder / "documents.jsonl"], tokenizer=word_tokenizer, seq_len=16, out=folder / "packed", val_fraction=0.3)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    return tmp_path / "packed"


def sign(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest with a fingerprint that fits."""
    content.pop("fingerprint", None)
    content["fingerprint"] = _fingerprint(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def change(folder: Path, path: str, value: Any) -> None:
    """Change one value of the manifest, and sign the manifest."""
    content = json.loads((folder / "manifest.json").read_text())
    node, (*keys, last) = content, [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        node = node[key]
    node[last] = value
    sign(folder, content)


def read(folder: Path) -> None:
    """Read every window."""
    dataset = PackedDataset(folder)
    for k in range(len(dataset)):
        with reading_window(dataset, k):
            dataset[k]


def use(folder: Path) -> None:
    """Use a dataset as the commands and a run do."""
    read(folder)
    PackedDataset(folder).joint_counts()
    list(verify(folder))


def refusal(folder: Path) -> list[str]:
    """Use a dataset. Return the lines of the refusal."""
    try:
        use(folder)
    except InputError as error:
        return str(error).splitlines() or [""]
    return []


def is_refused(folder: Path) -> str:
    """Return the one line of the refusal by the readers of the windows. The whole check must refuse as well."""
    with pytest.raises(InputError) as raised:
        list(verify(folder))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError) as raised:
        read(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


NAME = "splits.train.shards.0.file"
VALUES = [
    ("window", 0, "window is 0, a window has from 2 to 67108864 tokens"),
    ("window", 1, "window is 1, "),
    ("window", 2**33, "window is 8589934592, "),
    ("window", 2**62, "window is 4611686018427387904, "),
    ("policy", "../../x", "policy is '../../x', this version knows concat, best_fit"),
    ("val_fraction", 7, "val_fraction is 7, "),
    ("val_fraction", 1.0, "val_fraction is 1.0, "),
    ("val_fraction", float("nan"), "val_fraction is nan, "),
    ("val_fraction", float("inf"), "val_fraction is inf, "),
    ("token_dtype", "object", "token_dtype is 'object', choose one of uint16, uint32"),
    ("tokenizer.vocab_size", 0, "tokenizer.vocab_size is 0, "),
    ("tokenizer.vocab_size", 2**40, "tokenizer.vocab_size is 1099511627776, "),
    ("tokenizer.eos_id", 300, "tokenizer.eos_id is 300, the tokenizer has 300 ids"),
    ("tokenizer.name", "a\ud800b", "manifest.json is not JSON ('utf-8' codec can't encode"),
    ("sources.0.dropped", {"\ud800": 1}, "manifest.json is not JSON ('utf-8' codec can't encode"),
    ("tokenizer.name", "a\udcffb", "key 'tokenizer.name' has 'a\\udcffb', which is not Unicode text"),
    ("sources.0.dropped", {"\udcff": 1}, "which is not Unicode text"),
    ("splits", {}, "splits is empty"),
    ("splits.train.windows", 0, "splits.train.windows is 0, it is above 0"),
    ("splits.train.windows", 2**62, "splits.train.windows is 4611686018427387904, a split has less than 2^53 tokens"),
    ("splits.train.windows", 12, "windows of train: found 11, the manifest says 12"),
    ("splits.train.documents", 2**62, "splits.train.documents is 4611686018427387904, "),
    ("splits.train.parts", [2**62], "the parts of train have 4611686018427387904 documents, and the split has 15"),
    ("splits.train.parts", [], "the parts of train have 0 documents"),
    ("splits.train.padding", 9, "padding of train: found 11, the manifest says 9"),
    ("splits.train.targets", 167, "targets of train: found 165, the manifest says 167"),
    ("splits.train.bucket_counts", [], "bucket_counts has 0 numbers, a window of 16 tokens has 2 buckets"),
    ("splits.train.bucket_counts", [2**62] * 3, "bucket_counts has 3 numbers"),
    ("splits.train.bucket_counts", [2**62] * 2, "bucket_counts of train: found 9223372036854775808, "),
    ("splits.train.bucket_counts", [0, 0], "bucket_counts of train: found 0, the manifest says 165"),
    ("splits.train.shards", [], "windows of train: found 0, "),
    ("splits.train.shards.0.windows", 2**62, "shards[0].windows is 4611686018427387904, the shard has "),
    (NAME, "../outside.safetensors", "file is '../outside.safetensors', it is train-00000.safetensors"),
    (NAME, "/etc/passwd", "file is '/etc/passwd', "),
    (NAME, "a\0b", "file is 'a\\x00b', "),
    (NAME, "a" * 5000, "it is train-00000.safetensors"),
    (NAME, "val-00000.safetensors", "file is 'val-00000.safetensors', "),
]


@pytest.mark.parametrize(("path", "value", "message"), VALUES)
def test_a_manifest_that_fits_its_fingerprint(folder: Path, path: str, value: Any, message: str) -> None:
    change(folder, path, value)
    with pytest.raises(InputError) as raised:
        Manifest.read(folder)
    assert message in str(raised.value)
    assert str(raised.value).endswith("copy the dataset again or pack it again")


def test_a_split_of_another_name(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["../x"] = content["splits"]["val"]
    sign(folder, content)
    with pytest.raises(InputError, match=r"splits has '\.\./x', it has train and val"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "is not JSON (it has more than 64 brackets inside each other)"),
        (b'{"window": ' * 300 + b"1" + b"}" * 300, "is not JSON (it has more than 64 brackets inside each other)"),
        (b'{"format_version": ' + b"9" * 10_000 + b"}", "is not JSON (Exceeds the limit"),
        (b'{"format_version": ' + b"9" * 4_000 + b"}", "format_version is 9999"),
        (b"\xff\xfe{}", "is not JSON ("),
        (b"", "is not JSON ("),
    ],
)
def test_a_manifest_that_is_no_manifest(folder: Path, content: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError) as raised:
        Manifest.read(folder)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_manifest_without_an_end(folder: Path) -> None:
    """A sparse file takes no space on the disk, and all memory when it is read."""
    with (folder / "manifest.json").open("r+b") as out:
        out.truncate(2**41)
    with pytest.raises(InputError, match="has 2199023255552 bytes: a manifest has at most 1073741824"):
        Manifest.read(folder)


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_every_command_refuses_in_one_line(
    folder: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    change(folder, "window", 0)
    before = sorted(folder.iterdir())
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("exact-titan: error: packed/manifest.json: window is 0, ")
    assert sorted(folder.iterdir()) == before


def write(folder: Path, content: bytes) -> None:
    """Write a shard, and a manifest with its size and its digest."""
    (folder / SHARD).write_bytes(content)
    change(folder, "splits.train.shards.0.bytes", len(content))
    change(folder, "splits.train.shards.0.sha256", hashlib.sha256(content).hexdigest())


def with_header(folder: Path, change_header: Callable[[dict[str, Any]], Any]) -> None:
    content = (folder / SHARD).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    changed = change_header(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    write(folder, len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [2**70]),
        ("shape", [10**4000]),
        ("shape", [-1]),
        ("shape", [1.5]),
        ("shape", []),
        ("shape", [1, 1]),
        ("shape", 7),
        ("data_offsets", [2**70, 2**71]),
        ("data_offsets", [-100_000, 0]),
        ("data_offsets", [0, 10]),
        ("data_offsets", []),
        ("data_offsets", None),
        ("dtype", []),
        ("dtype", "F64"),
        ("dtype", {}),
    ],
)
@pytest.mark.parametrize("tensor", ["tokens", "segment_start"])
def test_a_header_that_lies(folder: Path, tensor: str, key: str, value: Any) -> None:
    with_header(folder, lambda header: header[tensor].update({key: value}))
    assert f"{SHARD} is not a shard of a packed dataset (tensor {tensor} " in is_refused(folder)


@pytest.mark.parametrize("text", [b"[" * 60_000, b"[]", b"{}", b"\xff", b'{"tokens": 1e999}', b" " * 2**17])
def test_a_header_that_is_no_header(folder: Path, text: bytes) -> None:
    with_header(folder, lambda _: text)
    assert f"{SHARD} is not a shard of a packed dataset (" in is_refused(folder)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**6])
def test_a_header_of_any_size(folder: Path, size: int) -> None:
    write(folder, size.to_bytes(8, "little") + (folder / SHARD).read_bytes()[8:])
    assert f"its header has {size} bytes" in is_refused(folder)


def fill(name: str, value: int, place: slice = slice(None)) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays[name].__setitem__(place, value)


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.__setitem__(name, make(arrays[name]).copy())


SEGMENTS = [
    (fill("segment_start", 2**62), "segments outside its 180 tokens"),
    (fill("segment_start", 2**63 - 1), "segments outside its 180 tokens"),
    (fill("segment_start", -1, slice(1)), "segments outside its 180 tokens"),
    (fill("segment_start", 181, slice(1)), "segments outside its 180 tokens"),
    (fill("segment_length", 2**31 - 1), "segments that do not fit into a window of 16"),
    (fill("segment_length", -1, slice(1)), "segments that do not fit into a window of 16"),
    (fill("segment_length", 0, slice(1)), "segments that do not fit into a window of 16"),
    (replaced("segment_length", lambda one: one[:-1]), "the tensors of its segments have different lengths"),
    (replaced("window_segments", lambda one: one[::-1]), "its shard has no segments 2"),
    (replaced("window_segments", lambda one: one[:2]), "its shard has no segments 2"),
    (replaced("window_segments", lambda one: one[:0]), "its shard has no segments "),
    (fill("window_segments", 2**62, slice(1, 2)), "its shard has no segments 0 … 4611686018427387904"),
    (fill("window_segments", -(2**62), slice(1)), "its shard has no segments -4611686018427387904"),
]


@pytest.mark.parametrize(("lie", "message"), SEGMENTS)
def test_segments_that_lie(folder: Path, lie: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    shard = Shard(folder / SHARD)
    names = ("tokens", "segment_start", "segment_length", "window_segments")
    arrays = {name: getattr(shard, name).copy() for name in names}
    lie(arrays)
    write_shard(folder / "new", arrays)
    write(folder, (folder / "new").read_bytes())
    assert message in is_refused(folder)
    with pytest.raises(InputError):
        PackedDataset(folder).joint_counts()


def test_a_shard_too_small_for_its_numbers(folder: Path) -> None:
    """An order of 2^40 windows would take hours before the first window is read."""
    content = json.loads((folder / "manifest.json").read_text())
    split = content["splits"]["train"]
    split["shards"][0] |= {"windows": 2**40, "segments": 2**41}
    split |= {"windows": 2**40, "padding": 2**44 - split["tokens"]}
    sign(folder, content)
    Manifest.read(folder)
    assert "and the 1099511627776 windows, 2199023255552 segments and 180 tokens" in is_refused(folder)


def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).rename(tmp_path / "elsewhere")
    (folder / SHARD).symlink_to(tmp_path / "elsewhere")
    assert is_refused(folder).startswith(f"shard {folder / SHARD} is a link out of its folder, to {tmp_path}/elsewhere")
    (folder / SHARD).unlink()
    (tmp_path / "elsewhere").rename(folder / "inside")
    (folder / SHARD).symlink_to("inside")
    use(folder)
    lengths = folder / "train-lengths.npy"
    lengths.rename(tmp_path / "lengths")
    lengths.symlink_to(tmp_path / "lengths")
    with pytest.raises(InputError, match=r"train-lengths\.npy is a link out of its folder"):
        use(folder)


def test_a_snapshot_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """The cache of the hub has its files in another folder of the same repository."""
    repository = tmp_path / "datasets--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    for file in snapshot.glob("*.*"):
        file.rename(repository / "blobs" / file.name)
        file.symlink_to(repository / "blobs" / file.name)
    use(snapshot)


def npy(shape: str, values: bytes = b"") -> bytes:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values


@pytest.mark.parametrize(
    "content",
    [
        npy("(4611686018427387904,)"),
        npy("(1152921504606846976,)"),
        npy("(-1,)"),
        npy("(" * 90 + ")" * 90),
        npy("'x'"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535,
        b"PK\x03\x04" + bytes(60),
        b"\x80\x04K\x01.",
    ],
)
def test_a_lengths_file_that_lies(folder: Path, content: bytes) -> None:
    (folder / "train-lengths.npy").write_bytes(content)
    with pytest.raises(
        InputError, match=r"train-lengths\.npy is (not a \.npy file|int64 \[(-1)?\], the manifest wants int64 \[15\])"
    ):
        read_lengths(folder, "train", 15)


@pytest.mark.parametrize("length", [2**62, 2**63 - 1, 13])
def test_lengths_that_lie(folder: Path, length: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A policy would lay out a document of 2^62 tokens for years."""
    np.save(folder / "train-lengths.npy", np.full(15, length))
    monkeypatch.chdir(folder.parent)
    for argv in (["inspect", "packed", "--compare"], ["verify", "packed"], ["window", "packed", "1"]):
        assert main(argv) == 2
        assert "train-lengths.npy does not fit the manifest: its documents have " in capsys.readouterr().err


def test_flipped_bits(folder: Path) -> None:
    """Bits of the manifest and of the shard's header, with and without digests that fit. The dataset may be whole."""
    draw = random.Random(7)
    manifest, shard = (folder / "manifest.json").read_bytes(), (folder / SHARD).read_bytes()
    head = 8 + int.from_bytes(shard[:8], "little")
    refused = 0
    for number in range(100):
        (folder / "manifest.json").write_bytes(manifest)
        (folder / SHARD).write_bytes(shard)
        file = folder / ("manifest.json" if number % 2 else SHARD)
        content = bytearray(file.read_bytes())
        for _ in range(draw.choice([1, 1, 2, 5])):
            content[draw.randrange(len(content) if number % 2 else head)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        try:
            if number % 2:
                content_now = json.loads((folder / "manifest.json").read_bytes())
                sign(folder, content_now)
            elif number % 4:
                write(folder, bytes(content))
        except (ValueError, AttributeError, TypeError):
            pass  # the flipped bits left no JSON object to sign
        lines = refusal(folder)
        refused += bool(lines)
        assert len(lines) < 2, (number, lines)
    assert 30 < refused < 100


def test_changed_values(folder: Path) -> None:
    """One value of the manifest is another value. The fingerprint fits."""
    draw = random.Random(11)
    manifest = (folder / "manifest.json").read_bytes()
    values = [
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**53,
        2**63 - 1,
        2**70,
        0.5,
        1e308,
        "",
        "x",
        "../x",
        [],
        [1],
        {},
        {"a": 1},
    ]
    refused = 0
    for number in range(160):
        content = json.loads(manifest)
        places: list[tuple[Any, Any]] = []
        nodes: list[Any] = [content]
        while nodes:
            node = nodes.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            nodes += [node[key] for key in keys if isinstance(node[key], dict | list)]
        node, key = draw.choice(places)
        node[key] = draw.choice(values)
        sign(folder, content)
        lines = refusal(folder)
        refused += bool(lines)
        assert len(lines) < 2, (number, lines)
    assert 50 < refused < 160
