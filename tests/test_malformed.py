"""Two hundred broken configs, manifests, shards and checkpoints: a command refuses each with one line or works.

1. A seeded mutator makes the broken files from good files.
2. Each command runs as users run it, with a time limit: no command may hang. Most commands run one after another in one
   process, see malformed_runs.py. A few commands run in separate processes.
3. :func:`check` checks the exit codes, the output and the files.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exact_titan.dataset.manifest import _fingerprint
from exact_titan.runs.checkpoint_manifest import write_manifest
from tests import warm_ranks
from tests.support import ROOT, pack_lengths

CONFIG = """\
recipe = "from_scratch"
dump_folder = "out"
activation_checkpoint = "selective"

[architecture]
dim = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
ffn_dim = 64

[dataloader]
dataset_path = "packed"
seed = 3

[training]
seq_len = 64
steps = 2
local_batch_size = 2
global_batch_size = 4
max_norm = 1.0

[optimizer]
lr = 1e-3

[lr_scheduler]
warmup_steps = 2
decay_ratio = 0.5

[loss]
rule = "exact"
alpha = 0.15
threshold = 16
refresh_steps = 0

[checkpoint]
interval = 1
keep_latest_k = 2

[metrics]
log_freq = 1

[validator]
enable = true
freq = 2
"""
VALUES = [
    "",
    "-1",
    "0",
    "1",
    "7",
    "1e400",
    "nan",
    "1.5",
    "true",
    '""',
    '"7"',
    '"none"',
    "[]",
    "[1, 2]",
    "{}",
    '"\\u0000"',
]
VALUES += [
    "999999999999999999999999",
    "-0.0",
    "'a'",
    "packed",
    '"packed=0"',
    '"packed,packed"',
    "1979-05-27",
    '"../.."',
]
JSON_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**63,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
]


def broken_text(draw: random.Random, text: str) -> str:
    """Return the TOML with a change of one line, one value, one key or a few characters."""
    lines = text.splitlines()
    number = draw.choice([number for number, line in enumerate(lines) if line])
    line = lines[number]
    key, equals, _ = line.partition(" = ")
    position = draw.randrange(len(line))
    match draw.choice(["value", "value", "value", "key", "delete", "double", "move", "character", "cut", "noise"]):
        case "value" if equals:
            lines[number] = f"{key} = {draw.choice(VALUES)}"
        case "key":
            lines[number] = line[:position] + line[position + 1 :]
        case "delete":
            del lines[number]
        case "double":
            lines.insert(number, line)
        case "move":
            lines.insert(draw.randrange(len(lines)), lines.pop(number))
        case "cut":
            return "\n".join([*lines[:number], line[:position]])
        case "noise":
            return (
                text[: len(text) // 2]
                + "".join(chr(draw.randrange(1, 400)) for _ in range(20))
                + text[len(text) // 2 :]
            )
        case _:
            lines[number] = line[:position] + draw.choice("=[]{}\"'.,#\n0 ü\\") + line[position:]
    return "\n".join(lines) + "\n"


def break_bytes(draw: random.Random, file: Path, within: float = 1.0) -> None:
    """Change, remove or add bytes of a file. ``within``: share of the file, from its start, for the first change."""
    content = bytearray(file.read_bytes())
    start = draw.randrange(max(1, int(within * len(content))))
    match draw.choice(["flip", "flip", "zero", "cut", "empty", "longer", "noise"]):
        case "flip":
            content[start : start + 1] = bytes([draw.randrange(256)])
        case "zero":
            content[start : start + 40] = bytes(len(content[start : start + 40]))
        case "cut":
            del content[start:]
        case "empty":
            content.clear()
        case "longer":
            content += b"\0" * 9
        case "noise":
            content[start : start + 40] = draw.randbytes(40)
    file.write_bytes(content)


def break_json(draw: random.Random, tree: Any) -> Any:
    """Return the tree with one changed value or one missing key."""
    parents = []
    stack = [tree]
    while stack:
        node = stack.pop()
        children = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        for key in children:
            parents.append((node, key))
            stack.append(node[key])
    node, key = draw.choice(parents)
    match draw.choice(["value", "value", "value", "delete", "near"]):
        case "delete":
            del node[key]
        case "near" if isinstance(node[key], int):
            node[key] += draw.choice([-1, 1, 1000])
        case _:
            node[key] = draw.choice(JSON_VALUES)
    return tree


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed dataset of a few shards, a config for the dataset, and a run of two steps."""
    folder = tmp_path_factory.mktemp("good")
    pack_lengths(folder, [30, 70, 200, 10, 64, 63, 65, 128, 5, 40] * 3, seq_len=64, val_fraction=0.2)
    (folder / "run.toml").write_text(CONFIG)
    results = run(folder, [{"cwd": str(folder), "program": "exact_titan.train", "argv": ["--config", "run.toml"]}])
    assert results[0]["code"] == 0, results[0]
    return folder


def run(folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for case in cases:
        case.setdefault("seconds", 60)
    (folder / "cases.json").write_text(json.dumps(cases))
    files = (folder / "cases.json", folder / "results.json")
    done = warm_ranks.run(0, "tests.malformed_runs", *files, cwd=folder, timeout=1500)
    assert done.codes == [0], done.stderr
    return json.loads((folder / "results.json").read_text())


def copy_of(good: Path, folder: Path, *names: str) -> Path:
    for name in names:
        source = good / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def check(cases: list[dict[str, Any]], results: list[dict[str, Any]]) -> int:
    """Return the number of refused cases. Fail if any other case did not work."""
    wrong, refused = [], 0
    for case, result in zip(cases, results, strict=True):
        error = f"{case['program']}: error: "
        lines = result["output"].splitlines() or [""]
        spoken = sum(line.startswith(error) for line in lines)
        fine = result["code"] == 0 and not spoken
        if result["code"] == 65:  # a changed bit in a checkpoint can make a weight NaN
            fine = "exact_titan.train: stopped: " in result["output"] and not spoken
        if result["code"] == 2:
            refused += 1
            # A training run may have files already when it reads the first broken byte.
            begun = [name for name in result["new"] if case["program"] == "exact-titan" or name.split("/")[0] != "out"]
            lost = [name for name in result["lost"] if name not in ("out/exit_code", "out/logs/rank_0.log")]
            fine = spoken == 1 and lines[-1].startswith(error) and not begun and not lost
        if not fine or result["traceback"] or "Traceback" in result["output"]:
            where = result["traceback"].strip().splitlines()[-4:]
            wrong.append([case["cwd"], case["argv"], result["code"], lines[-1], where, result["lost"], result["new"]])
    assert not wrong, json.dumps(wrong, indent=1)
    return refused


def cases_of(
    folder: Path, count: int, seed: int, make: Callable[[random.Random, Path], dict[str, Any]]
) -> list[dict[str, Any]]:
    cases = []
    for number in range(count):
        here = folder / f"{number:03d}"
        here.mkdir()
        case = {"cwd": str(here), **make(random.Random(1000 * seed + number), here)}
        if case["program"] == "exact_titan.train":
            # Background work of a finished case must not write into the folder of the next case.
            case["argv"] += ["--dump_folder", str(here / "out")]
        cases.append(case)
    return cases


@pytest.mark.slow
def test_broken_configs(good: Path, tmp_path: Path) -> None:
    """The runs end before the first step. A mutation may leave a good config."""

    def make(draw: random.Random, here: Path) -> dict[str, Any]:
        copy_of(good, here, "packed")
        (here / "run.toml").write_text(broken_text(draw, CONFIG), errors="surrogateescape")
        return {"program": "exact_titan.train", "argv": ["--config", "run.toml"], "build": True}

    cases = cases_of(tmp_path, 70, 1, make)
    assert check(cases, run(tmp_path, cases)) > 30


@pytest.mark.slow
def test_broken_manifests(good: Path, tmp_path: Path) -> None:
    """About half of the manifests have a correct fingerprint, because other checks follow the fingerprint check."""

    def make(draw: random.Random, here: Path) -> dict[str, Any]:
        file = copy_of(good, here, "packed", "run.toml") / "packed/manifest.json"
        if draw.random() < 0.2:
            break_bytes(draw, file)
        else:
            tree = break_json(draw, json.loads(file.read_text()))
            if draw.random() < 0.6:
                tree["fingerprint"] = _fingerprint({key: tree[key] for key in tree if key != "fingerprint"})
            file.write_text(json.dumps(tree))
        return command(draw)

    cases = cases_of(tmp_path, 50, 2, make)
    assert check(cases, run(tmp_path, cases)) > 30


def command(draw: random.Random) -> dict[str, Any]:
    """Return a random command that reads a packed dataset."""
    tools = [["inspect", "packed"], ["inspect", "packed", "--compare"], ["verify", "packed"], ["window", "packed", "2"]]
    argv = draw.choice([*tools, None, None])
    if argv is None:
        return {"program": "exact_titan.train", "argv": ["--config", "run.toml"]}
    return {"program": "exact-titan", "argv": argv}


@pytest.mark.slow
def test_broken_shards(good: Path, tmp_path: Path) -> None:
    """``verify`` refuses every broken shard. A training run may accept a shard with other tokens."""

    def make(draw: random.Random, here: Path) -> dict[str, Any]:
        copy_of(good, here, "packed", "run.toml")
        (file,) = (here / "packed").glob("train-*.safetensors")
        before = file.read_bytes()
        while file.read_bytes() == before:
            file.write_bytes(before)
            # The first 30 % of the file usually hold the segments.
            break_bytes(draw, file, within=draw.choice([0.3, 0.3, 1.0]))
        return command(draw)

    cases = cases_of(tmp_path, 40, 3, make)
    results = run(tmp_path, cases)
    check(cases, results)
    assert all(result["code"] == 2 for case, result in zip(cases, results, strict=True) if "verify" in case["argv"])


@pytest.mark.slow
def test_broken_checkpoints(good: Path, tmp_path: Path) -> None:
    """A run uses the previous checkpoint if the last checkpoint is incomplete. In some cases all are broken."""

    def make(draw: random.Random, here: Path) -> dict[str, Any]:
        copy_of(good, here, "packed", "run.toml", "out")
        folders = sorted((here / "out/checkpoint").iterdir())
        assert len(folders) == 2
        broken = folders if draw.random() < 0.3 else folders[1:]
        for folder in broken:
            file = draw.choice(sorted(file for file in folder.iterdir() if file.name != "validated"))
            match draw.choice(["bytes", "bytes", "bytes", "json", "remove", "folder"]):
                case "bytes":
                    break_bytes(draw, file)
                case "json":
                    listed = folder / "files.json"
                    listed.write_text(json.dumps(break_json(draw, json.loads(listed.read_text()))))
                case "remove":
                    file.unlink()
                case "folder":
                    file.unlink()
                    file.mkdir()
        if draw.random() < 0.3:
            return {"program": "exact-titan", "argv": ["export", "out", "--out", "exported"]}
        return {"program": "exact_titan.train", "argv": ["--config", "run.toml", "--training.steps", "3"]}

    cases = cases_of(tmp_path, 40, 4, make)
    check(cases, run(tmp_path, cases))


@pytest.mark.slow
def test_broken_files_of_a_run(good: Path, tmp_path: Path) -> None:
    """Files besides the checkpoints: the record, the metrics, TensorBoard's events, and the folder of the model."""

    def make(draw: random.Random, here: Path) -> dict[str, Any]:
        copy_of(good, here, "packed", "run.toml", "out")
        newest = here / "out/checkpoint/step-2"
        (events,) = (here / "out").rglob("events.out.tfevents.*")
        names = ("config.json", "tokenizer.json", "tokenizer_config.json")
        model = [file for name in names if (file := here / "out/model" / name).is_file()]
        file = draw.choice([newest / "run.json", newest / "run.json", here / "out/metrics.jsonl", events, *model])
        if file.suffix == ".json" and draw.random() < 0.7:
            file.write_text(json.dumps(break_json(draw, json.loads(file.read_text()))))
        elif file.suffix == ".jsonl" and draw.random() < 0.7:
            lines = file.read_text().splitlines()
            number = draw.randrange(len(lines))
            lines[number] = json.dumps(break_json(draw, json.loads(lines[number])))
            file.write_text("\n".join(lines) + "\n")
        else:
            break_bytes(draw, file)
        if newest in file.parents and file.stat().st_size:
            write_manifest(newest)  # the author of a hostile checkpoint also writes the list of its files
        tools = [["export", "out", "--out", "exported"], ["compare", "out", "out"], ["plan", "--config", "run.toml"]]
        argv = draw.choice([*tools, None, None, None])
        if argv is None:
            return {"program": "exact_titan.train", "argv": ["--config", "run.toml", "--training.steps", "3"]}
        return {"program": "exact-titan", "argv": argv}

    cases = cases_of(tmp_path, 16, 5, make)
    check(cases, run(tmp_path, cases))


@pytest.mark.parametrize(
    ("file", "content", "argv"),
    [
        ("run.toml", b"recipe = ", ["-m", "exact_titan.train", "--config", "run.toml"]),
        ("packed/manifest.json", b"[]", ["-m", "exact_titan.cli", "inspect", "packed"]),
    ],
)
def test_a_broken_file_in_a_separate_process(tmp_path: Path, file: str, content: bytes, argv: list[str]) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / file).write_bytes(content)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"error: " in done.stderr
    assert sorted(tmp_path.iterdir()) == sorted(
        {tmp_path / file, tmp_path / "packed"} - {tmp_path / "packed/manifest.json"}
    )
