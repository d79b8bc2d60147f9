import functools
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_titan.cli import COMMANDS, GROUPS, main
from exact_titan.dataset import Manifest

pytest_plugins = ["tests.text_fixtures"]

GOOD = b'{"text": "1 2 3 4 5 6 7 8 9"}\n'


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word_tokenizer: Path) -> Path:
    """A working directory with a source d.jsonl and a tokenizer t."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    shutil.copytree(word_tokenizer, tmp_path / "t")
    return tmp_path


def run(command: str) -> int:
    return main(command.split())


def fails(place: Path, capfd: pytest.CaptureFixture[str], command: str, message: str) -> None:
    """Check that the command prints one line with the message, returns exit code 2, and changes no file."""
    before = listing(place)
    assert run(command) == 2
    out, err = capfd.readouterr()
    assert err.startswith("exact-titan: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert message in err
    assert out == "" or command.startswith("verify")
    assert listing(place) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out o", "no source given"),
        ("none --out o", "source none: no such file or folder"),
        ("e --out o", "source e: the folder has no file of a readable kind"),
        ("d.md --out o", "source d.md: not a file of a readable kind"),
        (
            "d.jsonl --out o --text-key body",
            "no document with text (1 documents have none under 'body', see --text-key)",
        ),
        ("d.jsonl --out o --tokenizer none", "--tokenizer none: no such file or folder"),
        ("d.jsonl --out o --tokenizer e", "the folder has no tokenizer.json"),
        ("d.jsonl --out o --tokenizer d.jsonl", "d.jsonl is not a Hugging Face tokenizer.json"),
        ("d.jsonl --out o --eos-token <end>", "--eos-token '<end>' is not in the vocabulary"),
        ("d.jsonl --out e", "--out e exists"),
        ("d.jsonl --out d.jsonl/o", "--out d.jsonl/o cannot be written: [Errno 17] File exists: 'd.jsonl'"),
        ("d.jsonl --out o --seq-len 1", "--seq-len is 1"),
        ("d.jsonl --out o --val-fraction 1", "--val-fraction is 1.0"),
        ("d.jsonl --out o --val-fraction -0.1", "--val-fraction is -0.1"),
        ("d.jsonl --out o --val-fraction nan", "--val-fraction is nan"),
        ("d.jsonl --out s3://bucket/a", "--out s3:/bucket/a is a URL, and a dataset is a folder: give a folder"),
        ("d.jsonl --out o --workers 0", "--workers is 0"),
        ("d.jsonl --out new/er/o --val-fraction 0.999999", "the training split has no window: 1 documents"),
    ],
)
def test_wrong_options(place: Path, capfd: pytest.CaptureFixture[str], options: str, message: str) -> None:
    (place / "e").mkdir()
    (place / "d.md").write_text("a")
    tokenizer = "" if "--tokenizer" in options else "--tokenizer t"
    fails(place, capfd, f"pack {options} {tokenizer}", message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": ', "x.jsonl, line 1: not JSON"),
        ("x.jsonl", GOOD + b'{"text": "\xff"}', "x.jsonl, line 2: not UTF-8"),
        ("x.txt", b"\xff", "x.txt is not UTF-8"),
        ("x.txt", b"  ", "x.txt: no document with text"),
        ("x.jsonl.gz", gzip.compress(GOOD * 100, mtime=0)[:-20], "x.jsonl.gz is broken or cut short"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd\x24", "x.jsonl.zst is broken or cut short"),
        ("x.parquet", b"PAR1", "x.parquet is not a whole parquet file"),
    ],
)
def test_wrong_sources(place: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, message: str) -> None:
    (place / name).write_bytes(content)
    fails(place, capfd, f"pack d.jsonl {name} --tokenizer t --out new/o", message)


def test_wrong_datasets(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("pack d.jsonl --tokenizer t --seq-len 8 --out o") == 0
    capfd.readouterr()
    for command in ("inspect {}", "verify {}", "window {} 0"):
        fails(place, capfd, command.format("none"), "none: no such folder")
        fails(place, capfd, command.format("t"), "t is not a packed dataset: it has no manifest.json")
    fails(place, capfd, "window o 2", "window 2: o has the windows 0 … 1 in its split train")
    fails(place, capfd, "window o 0 --split val", "o has no split 'val': choose one of train")
    tokenizer = place / "o" / "tokenizer" / "tokenizer.json"
    tokenizer.rename(place / "aside")
    fails(place, capfd, "window o 0", "o/tokenizer/tokenizer.json is missing")
    (place / "aside").rename(tokenizer)
    fails(place, capfd, "inspect o --split val", "o has no split 'val': choose one of train")
    fails(place, capfd, "inspect o --threshold 4", "--threshold is 4")
    fails(place, capfd, "inspect o --rules exakt", "--rules has 'exakt': choose from standard, exact, ")
    fails(place, capfd, "inspect o --png none/e.png", "--png none/e.png cannot be written")
    lengths = place / "o" / "train-lengths.npy"
    lengths.rename(place / "o" / "aside")
    fails(place, capfd, "inspect o --compare", "o/train-lengths.npy is missing")
    manifest = place / "o" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"windows": 2', '"windows": 3', 1))
    fails(place, capfd, "inspect o", "the fingerprint does not match")
    manifest.write_text("{")
    fails(place, capfd, "verify o", "manifest.json is not JSON")


def test_pack_inspect_verify(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "more").mkdir()
    (place / "more" / "a.txt").write_text("1 2 3")
    (place / "more" / "b.jsonl").write_text('{"text": ""}\n{"text": "</s>"}\n')
    assert run("pack d.jsonl more --tokenizer t/tokenizer.json --seq-len 4 --out new/o --workers 2") == 0
    out, err = capfd.readouterr()
    assert err == ""
    fingerprint = Manifest.read(place / "new" / "o").fingerprint
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:9] == [
        "documents 2",
        "dropped 1 (no text)",
        "dropped 1 (shorter than two tokens)",
        "tokens 14",
        "end of text </s> (0)",
        "train 3 windows of 4, 2 documents, 0.00 % padding",
        "tail share 100.0 % of the targets have a context of 0 or more",
        "folder new/o",
        f"fingerprint {fingerprint[:12]}",
    ]
    assert lines[9].startswith("time ")
    assert (place / "new" / "o").stat().st_mode == (place / "more").stat().st_mode, "others may read it"

    assert run("inspect new/o --png e.png") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"o, train: 3 windows of 4, 2 documents, fingerprint {fingerprint[:12]}\n")
    assert (place / "e.png").stat().st_size > 10_000

    assert run("inspect new/o --compare") == 0
    lines = [line.split("  ") for line in capfd.readouterr().out.splitlines()[-9:]]
    table = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line if cell] for line in lines)}
    assert table["targets, % of all"] == ["concat", "best_fit"]
    # Documents of 9 and 3 inputs, packed end to end: the first is cut in three, the second ends the third window.
    assert table["windows"] == ["3", "3"]
    assert table["documents cut"] == ["1", "1"]
    assert table["utilisation, %"] == ["100.00", "100.00"]

    assert run("window new/o 2") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.endswith("tokens 0 … 3 of 4, whole\n1 2 3 </s>\n")

    assert run("append new/o more") == 2
    assert "new/o holds source more already (as more): leave it out" in capfd.readouterr().err
    (place / "new.txt").write_text("7 8 9 10")
    assert run("append new/o new.txt") == 0
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == "documents 3"
    assert "26.32 % new.txt: 5 tokens, 1 documents" in lines
    assert "train 4 windows of 4, 3 documents, 0.00 % padding" in lines
    assert f"fingerprint {Manifest.read(place / 'new' / 'o').fingerprint[:12]}" in lines
    assert Manifest.read(place / "new" / "o").fingerprint != fingerprint

    assert run("verify new/o") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.endswith("new/o is whole\n")


def test_the_help_of_exact_titan_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for command in ("train", *COMMANDS, *GROUPS):
            assert f"\n  {command} " in shown
        assert len(shown.splitlines()) < 25


@pytest.mark.parametrize("arguments", ["study", "study -h", "study --help"])
def test_the_help_of_a_group_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: exact-titan study COMMAND")
    for command in GROUPS["study"]:
        assert f"\n  {command} " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pakc d", "there is no command 'pakc'; did you mean pack"),
        ("trian from_scratch", "did you mean train"),
        ("studdy run x", "did you mean study"),
        ("study rnu x", "there is no command 'study rnu'; did you mean run?"),
        ("study run x --uot o", "study run: there is no option --uot; did you mean --out?"),
        ("study run x", "study run: Missing from exact-titan study run"),
        ("--oops", "there is no command '--oops'"),
        ("pack d --tokeniser t", "pack: there is no option --tokeniser; did you mean --tokenizer"),
        ("pack d --slurm.partitoin t", "did you mean --slurm.partition"),
        ("pack d --tokenizer t --out o --policy bestfit", "'bestfit'"),
        ("pack d", "--out"),
        ("window o x", "'x'"),
        ("plan --config from_scratch --nproc two", "'two'"),
        ("plan --config from_scratch --nproc 2 --training.stepz 1", "did you mean training.steps"),
        ("configs --copy Llama-3.1-8B-16", "did you mean Llama-3.1-8B-16k"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    fails(place, capfd, arguments, message)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"exact_titan \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_python_m_exact_titan() -> None:
    command = [sys.executable, "-m", "exact_titan", "configs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Llama-3.1-8B-16k" in done.stdout


@pytest.mark.parametrize("arguments", ["configs", "train --help-all"])
def test_a_page_into_a_closed_pipe_is_quiet(arguments: str) -> None:
    command = f"{sys.executable} -m exact_titan {arguments} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", ["pack", "inspect", "window", "verify", "configs", "plan"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert "Example: exact-titan" in capsys.readouterr().out


def test_a_reader_that_closes_the_pipe_sees_no_traceback(place: Path) -> None:
    (place / "long.jsonl").write_text(json.dumps({"text": "1 " * 100_000}))
    assert run("pack long.jsonl --tokenizer t --seq-len 100000 --out o") == 0
    command = f"{sys.executable} -m exact_titan.cli window o 0 | head -c 10"
    done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("o, train: ", "")


def test_help_imports_little() -> None:
    program = """if True:
        import sys
        import exact_titan.cli
        heavy = {"torch", "datatrove", "numpy", "matplotlib", "tokenizers"}
        print({name.split(".")[0] for name in sys.modules} & heavy)
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_an_interruption_leaves_nothing(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exact_titan.dataset.writer.SplitWriter.add", interrupt)
    before = listing(place)
    assert run("pack d.jsonl --tokenizer t --out new/o") == 130
    assert capfd.readouterr().err == "exact-titan: interrupted\n"
    assert listing(place) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(place: Path, number: signal.Signals, code: int) -> None:
    draw = random.Random(0)
    line = json.dumps({"text": " ".join(str(draw.randrange(300)) for _ in range(2000))}) + "\n"
    (place / "long.jsonl").write_text(line * 4_000)
    command = [sys.executable, "-m", "exact_titan.cli", "pack", "long.jsonl", "--tokenizer", "t", "--out", "o"]
    before = set(os.listdir(place))
    # A shell starts background programs, and their children, with SIGINT ignored.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True, preexec_fn=default)
    while process.poll() is None and set(os.listdir(place)) == before:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert set(os.listdir(place)) == before
