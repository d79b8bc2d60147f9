import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, word_tokenizer


@pytest.mark.slow
def test_signals_end_a_pack_that_waits_for_a_pipe(tmp_path: Path) -> None:
    word_tokenizer(tmp_path / "tokenizer.json", 300)
    runs = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        name = number.name
        os.mkfifo(tmp_path / f"{name}.jsonl")
        command = ["-m", "exact_titan.cli", "pack", f"{name}.jsonl", "--tokenizer", "tokenizer.json", "--out", name]
        runs[number] = subprocess.Popen(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            # A background job of a shell ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    for number, run in runs.items():
        deadline = time.monotonic() + 60
        # A write end opens only when the reading thread waits for data.
        while True:
            try:
                pipe = os.open(tmp_path / f"{number.name}.jsonl", os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        run.send_signal(number)
        begin = time.monotonic()
        assert run.wait(30) == 128 + number
        assert time.monotonic() - begin < 10
        os.close(pipe)
        assert run.stderr is not None
        end = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        assert run.stderr.read() == f"exact-titan: {end}\n"
    assert not list(tmp_path.glob(".SIG*"))
