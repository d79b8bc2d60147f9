import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests import warm_ranks
from tests.support import word_tokenizer


@pytest.mark.slow
def test_signals_end_a_pack_that_waits_for_a_pipe(tmp_path: Path) -> None:
    word_tokenizer(tmp_path / "tokenizer.json", 300)
    with contextlib.ExitStack() as stack:
        runs = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            name = number.name
            os.mkfifo(tmp_path / f"{name}.jsonl")
            arguments = ["pack", f"{name}.jsonl", "--tokenizer", "tokenizer.json", "--out", name]
            out, err = tmp_path / f"{name}.out", tmp_path / f"{name}.err"
            runs[number] = stack.enter_context(
                contextlib.closing(warm_ranks.launch(0, "exact_titan.cli", arguments, tmp_path, out, err))
            )
        for number, run in runs.items():
            deadline = time.monotonic() + 60
            # A write end opens only when the reading thread waits for data.
            while True:
                try:
                    pipe = os.open(tmp_path / f"{number.name}.jsonl", os.O_WRONLY | os.O_NONBLOCK)
                    break
                except OSError:
                    assert run.running()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            run.send_signal(number)
            begin = time.monotonic()
            assert run.end(30) == [128 + number]
            assert time.monotonic() - begin < 10
            os.close(pipe)
            end = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
            assert run.stderr == f"exact-titan: {end}\n"
    assert not list(tmp_path.glob(".SIG*"))
