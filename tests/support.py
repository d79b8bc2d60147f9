"""Helpers for the tests of several rooms: datasets with documents of chosen lengths, and real torchrun."""

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from exact_titan.dataset import PackedDataset
from exact_titan.packing import pack
from tests.warm_ranks import ROOT, Run

VOCAB = 256


def word_tokenizer(file: Path, ids: int) -> None:
    """Write a tokenizer.json with readable ids: the word "17" is token 17, up to ``ids - 1``, and ``</s>`` is 0."""
    words = {"</s>": 0} | {str(word): word for word in range(1, ids)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(file))


def pack_lengths(
    folder: Path, lengths: Sequence[int], *, seq_len: int, val_fraction: float = 0.0, seed: int = 0
) -> PackedDataset:
    """Pack random documents of these lengths into ``folder/packed``. Each document has one token more, ``</s>``."""
    rng = random.Random(seed)
    texts = []
    for length in lengths:
        # A random walk with 3 choices at each word. A model can learn these documents.
        word = rng.randrange(1, VOCAB)
        words = []
        for _ in range(length):
            words.append(str(word))
            word = (word * 7 + rng.randrange(3)) % (VOCAB - 1) + 1
        texts.append(" ".join(words))
    return pack_texts(folder, texts, seq_len=seq_len, val_fraction=val_fraction)


def pack_texts(folder: Path, texts: Sequence[str], *, seq_len: int, val_fraction: float = 0.0) -> PackedDataset:
    """Pack these documents into ``folder/packed``. Their words are words of :func:`word_tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(folder / "tokenizer.json", VOCAB)
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out_folder = folder / "packed"
    pack(
        [folder / "documents.jsonl"],
        tokenizer=folder / "tokenizer.json",
        seq_len=seq_len,
        out=out_folder,
        val_fraction=val_fraction,
    )
    return PackedDataset(out_folder)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond ``size`` bytes. A write fails then, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def pack_renamed_copy(dataset: PackedDataset, folder: Path) -> PackedDataset:
    """Pack the corpus of :func:`pack_texts` again, with other names and places of the corpus and of the tokenizer."""
    before = dataset.folder.parent
    (folder / "other tokenizer").mkdir(parents=True)
    shutil.copy(before / "tokenizer.json", folder / "other tokenizer")
    shutil.copy(before / "documents.jsonl", folder / "copy.ndjson")
    pack(
        [folder / "copy.ndjson"],
        tokenizer=folder / "other tokenizer",
        seq_len=dataset.window,
        out=folder / "renamed",
        val_fraction=dataset.manifest.val_fraction,
    )
    return PackedDataset(folder / "renamed")


def run_benchmark(module: str, *arguments: object) -> str:
    """Run ``python -m module arguments…`` on the CPU in a fresh process, and return its standard output.

    The process is not forked from a warm process, because torch's profiler crashes in a fork now and then.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = _environment() | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def torchrun_command(nproc: int, *arguments: str) -> list[str]:
    """Return ``torchrun --nproc_per_node=nproc arguments…``, with the signal options of docs/operations.md."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={nproc}"]
    command += ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGHUP", "--shutdown-timeout=600"]
    return [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *arguments]


def torchrun(nproc: int, *arguments: str, cwd: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Run :func:`torchrun_command` in ``cwd``, with one thread per process."""
    command, environment = torchrun_command(nproc, *arguments), _environment()
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


class BackgroundRun(Run):
    """A running torchrun, with its output so far.

    Attributes:
        agent: the process of torchrun itself.
    """

    def __init__(self, agent: subprocess.Popen[bytes], log: Path) -> None:
        self.agent = agent
        self._log = log

    def output(self) -> str:
        """Return the output so far."""
        return self._log.read_text(errors="replace")

    def workers(self) -> list[int]:
        """Return the process ids of the living workers, ascending."""
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children")
        return sorted(map(int, children.read_text().split())) if children.exists() else []

    def running(self) -> bool:
        """Return whether torchrun still runs."""
        return self.agent.poll() is None

    def end(self, timeout: float = 120) -> int:
        """Wait until torchrun has ended by itself. Return the exit code of torchrun."""
        return self.agent.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL to torchrun and all workers, as in a failure of the machine."""
        for pid in [self.agent.pid, *self.workers()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.wait()


@contextlib.contextmanager
def background_torchrun(nproc: int, *arguments: str, cwd: Path) -> Iterator[BackgroundRun]:
    """Run :func:`torchrun` in the background of the test. The end of the context kills a run that still runs."""
    log = cwd / "torchrun.log"
    with log.open("wb") as out:
        command = torchrun_command(nproc, *arguments)
        agent = subprocess.Popen(command, cwd=cwd, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
        run = BackgroundRun(agent, log)
        try:
            yield run
        finally:
            run.kill()


def become_ordinary_user() -> None:
    """Let the permissions of files bind this process, also if the process belongs to root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER of the effective set
    assert libc.capset(header, data) == 0
