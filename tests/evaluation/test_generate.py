"""Generation: resumed after any interruption, refused for other prompts, weights or settings."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from exact_titan.cli import main
from exact_titan.errors import InputError
from exact_titan.evaluation.answers import Answer, read_answers
from exact_titan.evaluation.engine_options import RopeOptions
from exact_titan.evaluation.engines import Speed
from exact_titan.evaluation.generate import batches, generate
from exact_titan.evaluation.model_folder import read_model
from exact_titan.evaluation.models import open_model
from exact_titan.evaluation.prompt_sets import read_prompts
from exact_titan.evaluation.record_files import read_records
from exact_titan.runs.exit_codes import Ended
from tests.evaluation.tiny_models import example, text, write_model, write_set


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def examples() -> list:
    books = [text(40, seed) for seed in (1, 2)]
    return [
        example(f"words/near/256/{k}", f"{books[k % 2]} {text(3, k)}", room=3, prefix=f"book {k % 2}",
                continuations=(" w1 w2",))
        for k in range(8)
    ]  # fmt: skip


@pytest.fixture
def prompts(tmp_path, model, examples) -> Path:
    return write_set(tmp_path / "out" / "prompts", examples, model)


class Stub:
    """Answers with the last word of the prompt. ``fail_at`` raises an error or calls a function at that answer."""

    by_length = False
    chunk = 1

    def __init__(self, batch: int = 1, fail_at: int | None = None, fail=KeyboardInterrupt, version: str = "1") -> None:
        self.batch, self.settings = batch, {"engine": "stub", "version": version, "batch": batch}
        self.calls: list[list[str]] = []
        self._fail_at, self._fail = fail_at, fail
        self._count = 0

    def close(self) -> None:
        self.closed = True

    def measure(self) -> Speed | None:
        return Speed(100.0, 10.0)

    def answer(self, examples):
        self.calls.append([one.id for one in examples])
        for one in examples:
            if self._count == self._fail_at:
                self._fail()
            self._count += 1
            yield Answer(one.id, one.prompt.split()[-1], 1, "stop")


def opened(out: Path, model: Path, **options):
    return open_model(model, out=out, **options)


def run(prompts: Path, model: Path, engine, **options) -> Path:
    """Generate, and return the file of answers."""
    found = opened(prompts.parent.parent, model, **options)
    generate([prompts], folder=found.home, engine=engine, weights=found.model.weights)
    return found.home / "answers" / prompts.name


def test_examples_with_one_beginning_follow_each_other(examples):
    order = [one.prefix for batch in batches(examples, Stub(2)) for one in batch]
    assert order == ["book 0"] * 4 + ["book 1"] * 4
    lengths = [one.tokens for one in examples]
    by_length = Stub(2)
    by_length.by_length = True
    mixed = [replace(one, tokens=lengths[0] + k % 3) for k, one in enumerate(examples)]
    found = [one for batch in batches(mixed, by_length) for one in batch]
    assert [(one.prefix, one.tokens) for one in found] == sorted((one.prefix, one.tokens) for one in mixed)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fail_at", [0, 1, 4, 7])
def test_a_resumed_generation_equals_an_unbroken_one(tmp_path, model, examples, prompts, batch, fail_at):
    whole = run(prompts, model, Stub(batch), name="whole").read_bytes()

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    with pytest.raises(Ended) as ended:
        run(prompts, model, Stub(batch, fail_at, stop), name="broken")
    assert ended.value.code == 75
    file = tmp_path / "out" / "models" / "broken" / "answers" / prompts.name
    assert whole.startswith(file.read_bytes())
    with file.open("ab") as half:  # a kill in the middle of a write
        half.write(b'{"id": "words/near/2')
    resumed = Stub(batch)
    assert run(prompts, model, resumed, name="broken").read_bytes() == whole
    assert len(resumed.calls) == -(-8 // batch) - fail_at // batch


def test_a_start_that_was_killed_in_the_header(model, prompts, capsys):
    whole = run(prompts, model, Stub()).read_bytes()
    for size in (0, 10):
        file = prompts.parent.parent / "models" / "tiny" / "answers" / prompts.name
        file.write_bytes(whole[:size])
        assert run(prompts, model, Stub()).read_bytes() == whole
    capsys.readouterr()
    assert run(prompts, model, Stub()).read_bytes() == whole
    assert capsys.readouterr().out == "all 8 answers exist already\n"


def test_the_estimate_counts_shared_beginnings_once(model, prompts, capsys):
    run(prompts, model, Stub())
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("8 examples, ")
    assert "at most 24 generated tokens" in line
    assert "100 tokens/s of prompts and 10 generated tokens/s (measured)" in line


def test_two_generations_into_one_file_refuse_each_other(model, prompts):
    def second():
        with pytest.raises(InputError, match=r"another process writes to .*jsonl"):
            run(prompts, model, Stub())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(prompts, model, Stub(fail_at=3, fail=second))


def test_other_settings_weights_and_prompts_are_refused(tmp_path, model, examples, prompts):
    file = run(prompts, model, Stub(fail_at=None))
    kept = file.read_bytes()
    with pytest.raises(InputError, match=r"with version '1', and now version is '2': give the model another --name"):
        run(prompts, model, Stub(version="2"))
    home = file.parent.parent
    with pytest.raises(InputError, match="answers of other weights"):
        generate([prompts], folder=home, engine=Stub(), weights="other")
    other = write_set(prompts.parent, examples[:4], model)
    assert other == prompts
    with pytest.raises(InputError, match="answers to another prompt set"):
        run(prompts, model, Stub())
    assert file.read_bytes() == kept


def test_prompts_that_the_model_cannot_answer_are_refused(tmp_path, model, prompts):
    short = write_model(tmp_path / "short", positions=45)
    with pytest.raises(InputError, match=r"needs 46 positions, but .*short has 45 .*--rope.factor 2"):
        run(prompts, short, Stub())
    found = opened(prompts.parent.parent, short, rope=RopeOptions("yarn", 2.0))
    assert (found.model.name, found.model.positions) == ("short-yarn-2", 90)
    tokenizer = model / "tokenizer.json"
    other = write_model(tmp_path / "other")
    (other / "tokenizer.json").write_text(tokenizer.read_text() + "\n")
    with pytest.raises(InputError, match="prompts for another tokenizer"):
        run(prompts, other, Stub())


def test_wrong_input_on_the_command_line(tmp_path, model, prompts, capsys):
    def error(*arguments: str) -> str:
        assert main(["eval", "generate", str(model), "--out", str(tmp_path / "new"), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--batch is 0: the number must be 1 or more" in error("--batch", "0")
    assert "--prefill-chunk is -1" in error("--prefill-chunk", "-1")
    assert "has no prompt sets for the tokenizer" in error()
    assert "nothing.jsonl: no such file" in error("--prompts", str(tmp_path / "nothing.jsonl"))
    assert "--engine server needs --server.url" in error("--engine", "server")


@pytest.mark.slow
def test_killed_and_continued_equals_unbroken_on_the_command_line(tmp_path, model, prompts):
    """The real engine, kill -9 in the middle, and the same command again."""
    out = prompts.parent.parent
    arguments = ["eval", "generate", str(model), "--out", str(out), "--prefill-chunk", "16"]
    assert main([*arguments, "--name", "whole"]) == 0
    whole = (out / "models" / "whole" / "answers" / prompts.name).read_bytes()
    assert len(list(read_records(out / "models" / "whole" / "answers" / prompts.name))) == 8
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import os, sys\n"
        "from exact_titan.evaluation import record_files\n"
        "append, count = record_files.RecordAppender._write, 0\n"
        "def write(self, record):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 5:\n"
        "        os.write(self._out.fileno(), record_files._line(record).encode()[:20])\n"
        "        os.kill(os.getpid(), 9)\n"
        "    append(self, record)\n"
        "record_files.RecordAppender._write = write\n"
        "from exact_titan.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    ended = subprocess.run([sys.executable, killed, *arguments, "--name", "broken"], capture_output=True)
    assert ended.returncode == -9, ended.stderr
    broken = out / "models" / "broken" / "answers" / prompts.name
    assert whole.startswith(broken.read_bytes()[:-20])
    assert broken.read_bytes() != whole
    assert main([*arguments, "--name", "broken"]) == 0
    assert broken.read_bytes() == whole
    answers = read_answers(broken, read_prompts(prompts))
    assert read_model(out / "models" / "broken").weights == read_model(out / "models" / "whole").weights
    assert all(len(one.logprobs) == 1 and 1 <= one.generated <= 3 for one in answers.values())
